/* What makes plain forms smoother: Japanese input, drafts that survive, dialogs, copying, messages.
   Every page works without this file. No framework; htmx does the rest. `conversation.js` builds on `kumiai`. */
globalThis.kumiai = (() => {
  "use strict";
  const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";
  const $ = (selector, root = document) => root.querySelector(selector);

  // ── Japanese input ──────────────────────────────────────────────────────────────────────────────────────────────
  // Chromium: keydown(isComposing) → compositionend. Safari: compositionend → keydown(keyCode 229). In both the Enter
  // that confirms a conversion must neither send nor submit; so it is stopped here, before anybody else sees it.
  let composing = false;
  let endedAt = -1000;
  document.addEventListener("compositionstart", () => { composing = true; }, true);
  document.addEventListener("compositionend", (event) => { composing = false; endedAt = event.timeStamp; }, true);
  const isConversion = (event) =>
    composing || event.isComposing || event.keyCode === 229 || (event.timeStamp - endedAt < 30 && event.timeStamp >= endedAt);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !isConversion(event)) return;
    event.stopImmediatePropagation();
    if (event.target instanceof HTMLInputElement) event.preventDefault();
  }, true);

  // ── Messages ────────────────────────────────────────────────────────────────────────────────────────────────────
  const toast = (words) => {
    const place = $("#toasts");
    if (!place) return;
    const box = document.createElement("div");
    box.className = "k-toast";
    box.textContent = words;
    place.replaceChildren(box);
    setTimeout(() => box.remove(), 6000);
  };
  document.querySelectorAll("#toasts .k-toast").forEach((box) => setTimeout(() => box.remove(), 8000));

  const line = (cls, text) => {
    const p = document.createElement("p");
    p.className = cls;
    p.textContent = text;
    return p;
  };
  const banner = (title, detail, number, link) => {
    const box = document.createElement("div");
    box.className = "k-banner k-banner--error";
    box.setAttribute("role", "alert");
    const icon = document.createElement("template");
    const sprite = document.querySelector("use")?.getAttribute("href")?.split("#")[0] ?? "";
    icon.innerHTML = `<svg class="k-i" aria-hidden="true"><use href="${sprite}#i-error"/></svg>`;
    const body = document.createElement("div");
    body.className = "k-banner__body";
    body.append(line("k-banner__title", title));
    if (detail && detail !== title) body.append(line("", detail));
    if (link) {
      const a = document.createElement("a");
      a.className = "k-button k-button--m";
      a.href = link.href;
      a.textContent = link.words;
      const row = line("", "");
      row.append(a);
      body.append(row);
    }
    if (number) body.append(line("k-small k-soft", `問合せ番号 ${number.slice(0, 13)}`));
    box.append(icon.content, body);
    return box;
  };

  // ── Asking the server ───────────────────────────────────────────────────────────────────────────────────────────
  const offline = { title: "つながりが切れました", detail: "書いた文章は残っています。つながってから、もう一度送ってください。", status: 0 };
  const ended = { title: "サインインし直してください", detail: "書いた文章は、この端末に残っています。", status: 401 };
  const someoneElse = { title: "この端末で、別の人がサインインしています", detail: "まだ送っていません。ページを開き直してください。", status: 409 };
  const problemOf = async (response) => {
    if (response.status === 401) return ended;
    try {
      return await response.json();
    } catch {
      return { title: "処理できませんでした", detail: "少し待ってから、もう一度試してください。", status: response.status };
    }
  };
  const showProblem = (place, problem) => {
    const link = problem.status === 401 ? { href: location.pathname + location.search, words: "サインインして続ける" } : null;
    const box = banner(problem.title, problem.detail, problem.trace_id, link);
    box.dataset.type = problem.type ?? "";
    place.replaceChildren(box);
    place.scrollIntoView({ block: "nearest" });
  };
  const isForged = (response, problem) => response.status === 403 && String(problem.type).endsWith(":forged-request");
  const freshToken = async () => {
    // Another tab signed in anew: its pages have another token. Ours may go on only for the same person.
    const response = await fetch("/settings", { headers: { "kumiai-request": "fetch" } });
    if (!response.ok) throw await problemOf(response);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const of = (name) => page.querySelector(`meta[name="${name}"]`)?.content ?? "";
    if (of("person") !== meta("person")) throw someoneElse;
    document.querySelector('meta[name="csrf"]').content = of("csrf");
    document.querySelectorAll('input[name="csrf"]').forEach((field) => { field.value = of("csrf"); });
  };
  /* Posts and gives the response; throws a problem ({title, detail, status}) for whatever went wrong. */
  const post = async (url, body, { accept = "text/html", signal, keepalive = false } = {}) => {
    for (const attempt of [1, 2]) {
      let response;
      try {
        const headers = { accept, "kumiai-csrf": meta("csrf"), "kumiai-request": "fetch" };
        response = await fetch(url, { method: "POST", body, signal, headers, keepalive });
      } catch (error) {
        throw error.name === "AbortError" ? error : offline;
      }
      if (response.ok) return response;
      const problem = await problemOf(response);
      if (attempt === 2 || !isForged(response, problem)) throw problem;
      await freshToken();
    }
    throw offline;
  };
  const fragment = (html) => {
    const holder = document.createElement("template");
    holder.innerHTML = html.trim();
    return holder.content;
  };

  // ── Drafts: unsent text outlives an expired session, for eight hours, for this person only ──────────────────────
  // A new conversation is one per tab: the tab's name lives in its session storage, and a lock tells whether it lives.
  const DRAFT_MS = 8 * 3600e3;
  const prefix = `kumiai:${meta("person")}:`;
  const tabOf = () => {
    let tab = sessionStorage.getItem("kumiai:tab");
    if (!tab) {
      tab = Array.from(crypto.getRandomValues(new Uint8Array(8)), (n) => n.toString(16)).join("");
      sessionStorage.setItem("kumiai:tab", tab);
    }
    return tab;
  };
  const hold = (signal) => navigator.locks?.request(`kumiai:tab:${tabOf()}`, { signal }, () => new Promise(() => {}));
  // The page that was here before lets go at once; a tab this one was copied from does not, so it takes another name.
  hold(AbortSignal.timeout(2000))?.catch(() => {
    sessionStorage.removeItem("kumiai:tab");
    hold();
  });
  const readDraft = (key) => {
    try {
      const kept = JSON.parse(localStorage.getItem(key) ?? "null");
      if (kept && Date.now() - kept.at < DRAFT_MS && (kept.text || kept.files?.length)) return kept;
    } catch { /* a broken draft is no draft */ }
    localStorage.removeItem(key);
    return null;
  };
  const lostDraft = async (base) => {
    // The newest one whose tab is gone: the browser was closed, or the machine went down.
    const held = (await navigator.locks?.query())?.held?.map((lock) => lock.name) ?? [];
    const others = Object.keys(localStorage)
      .filter((key) => key.startsWith(base) && !held.includes(`kumiai:tab:${key.slice(base.length)}`))
      .map((key) => [key, readDraft(key)])
      .filter(([, kept]) => kept);
    return others.sort((a, b) => b[1].at - a[1].at)[0] ?? null;
  };
  const forget = () => {
    for (const key of Object.keys(localStorage)) if (key.startsWith("kumiai:")) localStorage.removeItem(key);
  };
  const keepDraft = async (form) => {
    const area = $("textarea", form);
    if (!area || !meta("person")) return;
    // A new conversation gets its own name with the first answer.
    const isNew = () => form.dataset.draft.endsWith(":new");
    const base = `${prefix}${form.dataset.draft}:`;
    const key = () => (isNew() ? base + tabOf() : `${prefix}${form.dataset.draft}`);
    let given = area.value;
    let source = key();
    let kept = readDraft(source);
    if (!kept && isNew() && !given) [source, kept] = (await lostDraft(base)) ?? [source, null];
    if (kept && !given && !area.value) {
      area.value = kept.text;
      area.dispatchEvent(new Event("input", { bubbles: true }));
      form.dispatchEvent(new CustomEvent("kumiai:restored", { detail: kept }));
      toast("書きかけの文章を戻しました");
    }
    const keep = () => {
      const files = [...form.querySelectorAll('input[name="file_ids"]')].map((field) => field.value);
      if (area.value !== given || files.length) localStorage.setItem(key(), JSON.stringify({ text: area.value, files, at: Date.now() }));
      else localStorage.removeItem(key());
    };
    form.addEventListener("input", keep);
    form.addEventListener("kumiai:files", keep);
    form.addEventListener("kumiai:sent", () => {
      localStorage.removeItem(key());
      localStorage.removeItem(source);
      given = "";
    });
    // Without scripts on the way (or after them) a form may still be sent plainly.
    form.addEventListener("submit", (event) => setTimeout(() => { if (!event.defaultPrevented) localStorage.removeItem(key()); }));
  };
  // By then the page's other scripts listen, too.
  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("form[data-draft]").forEach(keepDraft));
  document.querySelectorAll("form[data-signout]").forEach((form) => form.addEventListener("submit", forget));

  // ── Dialogs: a link to a form opens it over the page; without scripts it is a page ───────────────────────────────
  const dialog = $("#dialog");
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[data-dialog]");
    if (!link || !dialog || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const response = await fetch(link.href, { headers: { "hx-request": "true", "kumiai-request": "fetch" } }).catch(() => null);
    if (!response?.ok) return location.assign(link.href);
    link.closest("details.k-pop")?.removeAttribute("open");
    dialog.replaceChildren(fragment(await response.text()));
    dialog.setAttribute("aria-labelledby", $("[id]", dialog)?.id ?? "");
    prepare(dialog);
    dialog.showModal();
    $("input:not([type=hidden]), textarea", dialog)?.focus();
    dialog.dispatchEvent(new CustomEvent("kumiai:opened"));
  });
  document.addEventListener("click", (event) => {
    const close = event.target.closest("[data-close]");
    const place = close?.closest("dialog, .p-exportplace");
    if (!place) return;
    event.preventDefault();
    if (place instanceof HTMLDialogElement) place.close();
    else {
      $(`[hx-target="#${place.id}"]`)?.focus();
      place.replaceChildren();
    }
  });

  // ── Checklists ──────────────────────────────────────────────────────────────────────────────────────────────────
  const count = (form) => {
    const boxes = [...form.querySelectorAll('input[type="checkbox"]')];
    const open = boxes.filter((box) => !box.checked).length;
    $('button[type="submit"]', form).disabled = open > 0;
    $("[data-checklist-left]", form).textContent = open ? `あと${open}つ確かめると書き出せます。` : "";
  };
  const prepare = (root) => root.querySelectorAll("form[data-checklist]").forEach(count);
  prepare(document);
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-checklist]");
    if (form) count(form);
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("form[data-checklist]")) return;
    toast("書き出しました。ダウンロードを確かめてください");
    const place = event.target.closest("dialog");
    if (place) setTimeout(() => place.close(), 300);
  });
  document.addEventListener("htmx:after:swap", () => {
    prepare(document);
    const place = document.querySelector(".p-exportplace:not(:empty):not([data-seen])");
    if (!place) return;
    place.dataset.seen = "";
    place.scrollIntoView({ block: "nearest" });
    $("input[type=checkbox]", place)?.focus({ preventScroll: true });
  });

  // ── What takes a while says so, and is not sent twice ───────────────────────────────────────────────────────────
  const setSending = (form, words) => {
    form.querySelectorAll("button").forEach((button) => { button.disabled = Boolean(words); });
    $(".k-busy", form)?.remove();
    if (!words) return;
    const note = line("k-busy k-small", words);
    note.setAttribute("role", "status");
    form.append(note);
  };
  document.addEventListener("submit", (event) => {
    const form = event.target;
    // After the browser has taken what it sends: a button that is off would not be among it.
    if (form.dataset.busy) setTimeout(() => { if (!event.defaultPrevented) setSending(form, form.dataset.busy); });
  });
  addEventListener("pageshow", () => document.querySelectorAll("form[data-busy]").forEach((form) => setSending(form, "")));

  // The tab of this page may stand outside a narrow window.
  document.querySelectorAll(".k-tabs [aria-current]").forEach((tab) => {
    const strip = tab.closest(".k-tabs");
    strip.scrollLeft += tab.getBoundingClientRect().right - strip.getBoundingClientRect().right + 24;
  });

  // ── Copying, small comforts ─────────────────────────────────────────────────────────────────────────────────────
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[data-copy], button[data-copy-text]");
    if (!link) return;
    event.preventDefault();
    try {
      const text = link.dataset.copyText ?? (await (await fetch(link.href)).text());
      await navigator.clipboard.writeText(text);
      toast("コピーしました");
    } catch {
      if (link.href) location.assign(link.href);
    }
  });
  document.addEventListener("click", (event) => {
    document.querySelectorAll("details.k-pop[open]").forEach((d) => { if (!d.contains(event.target)) d.open = false; });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    document.querySelectorAll("details.k-pop[open]").forEach((d) => { d.open = false; $("summary", d).focus(); });
  });

  return { $, meta, toast, post, fragment, showProblem, offline, isConversion };
})();
