/* What makes plain forms smoother: Japanese input, drafts that survive, streamed answers, copying, attaching.
   Every page works without this file. No framework; htmx does the rest. */
(() => {
  "use strict";
  const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";
  const csrf = () => meta("csrf");
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
    setTimeout(() => box.remove(), 5000);
  };
  document.querySelectorAll("#toasts .k-toast").forEach((box) => setTimeout(() => box.remove(), 6000));

  const banner = (title, detail, number, link) => {
    const box = document.createElement("div");
    box.className = "k-banner k-banner--error";
    box.setAttribute("role", "alert");
    const body = document.createElement("div");
    body.className = "k-banner__body";
    const add = (cls, text) => {
      if (!text) return;
      const p = document.createElement("p");
      p.className = cls;
      p.textContent = text;
      body.append(p);
    };
    add("k-banner__title", title);
    add("", detail);
    if (link) {
      const a = document.createElement("a");
      a.className = "k-button k-button--m";
      a.href = link.href;
      a.textContent = link.words;
      body.append(a);
    }
    add("k-small k-soft", number && `問合せ番号 ${number.slice(0, 13)}`);
    box.append(body);
    return box;
  };

  const problemOf = async (response) => {
    if (response.status === 401 || (response.redirected && !response.ok)) {
      return { title: "サインインし直してください", detail: "書いた文章は、この端末に残っています。", status: 401 };
    }
    try {
      return await response.json();
    } catch {
      return { title: "処理できませんでした", detail: "少し待ってから、もう一度試してください。", status: response.status };
    }
  };
  const offline = { title: "つながりが切れました", detail: "書いた文章は残っています。つながってから、もう一度送ってください。", status: 0 };
  const showProblem = (place, problem) => {
    const link = problem.status === 401 ? { href: location.pathname + location.search, words: "サインインして続ける" } : null;
    place.replaceChildren(banner(problem.title, problem.detail, problem.trace_id, link));
  };

  // ── Drafts: unsent text outlives an expired session, for eight hours, for this person only ──────────────────────
  const DRAFT_HOURS = 8;
  const draftKey = (name) => `kumiai:${meta("person")}:${name}`;
  const forget = () => {
    for (const key of Object.keys(localStorage)) if (key.startsWith("kumiai:")) localStorage.removeItem(key);
  };
  document.querySelectorAll("form[data-draft]").forEach((form) => {
    const area = $("textarea", form);
    if (!area || !meta("person")) return;
    const key = draftKey(form.dataset.draft);
    try {
      const kept = JSON.parse(localStorage.getItem(key) ?? "null");
      if (kept && Date.now() - kept.at < DRAFT_HOURS * 3600e3 && !area.value && kept.text) {
        area.value = kept.text;
        toast("書きかけの文章を戻しました");
      }
    } catch { /* a broken draft is no draft */ }
    area.addEventListener("input", () => localStorage.setItem(key, JSON.stringify({ text: area.value, at: Date.now() })));
    form.addEventListener("kumiai:sent", () => localStorage.removeItem(key));
  });
  document.querySelectorAll("form[data-signout]").forEach((form) => form.addEventListener("submit", forget));

  // ── Sending with Enter ──────────────────────────────────────────────────────────────────────────────────────────
  const area = $("#compose");
  const hint = $("#send-hint");
  const dialog = $("#ask-send-key");
  const showHint = () => {
    if (!area || !hint) return;
    const key = area.dataset.sendKey;
    hint.hidden = false;
    hint.textContent = key === "ctrl" ? "Ctrl＋Enterで送る" : key === "enter" ? "Enterで送る（改行はShift＋Enter）" : "";
    if (key) {
      const link = document.createElement("a");
      link.href = "/settings";
      link.textContent = "変える";
      hint.append("　", link);
    }
  };
  showHint();
  const choose = async (key) => {
    area.dataset.sendKey = key;
    showHint();
    dialog.close();
    area.focus();
    await fetch("/settings", {
      method: "POST",
      headers: { "kumiai-csrf": csrf(), "kumiai-request": "fetch", "content-type": "application/x-www-form-urlencoded" },
      body: new URLSearchParams({ send_key: key }),
    }).catch(() => {});
  };
  dialog?.querySelectorAll("[data-choose-key]").forEach((b) => b.addEventListener("click", () => choose(b.dataset.chooseKey)));
  area?.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || isConversion(event)) return;
    const modified = event.ctrlKey || event.metaKey;
    if (event.shiftKey || event.altKey) return;
    if (!area.dataset.sendKey && !modified) {
      event.preventDefault();
      dialog.showModal();
      return;
    }
    if (modified || area.dataset.sendKey === "enter") {
      event.preventDefault();
      if (!$("#send").hidden) area.form.requestSubmit();
    }
  });

  // ── Streamed answers ────────────────────────────────────────────────────────────────────────────────────────────
  async function* serverEvents(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      for (let end; (end = buffer.indexOf("\n\n")) >= 0; buffer = buffer.slice(end + 2)) {
        const event = { name: "message", data: "" };
        for (const line of buffer.slice(0, end).split("\n")) {
          if (line.startsWith("event: ")) event.name = line.slice(7);
          if (line.startsWith("data: ")) event.data += line.slice(6);
        }
        if (event.data) yield { name: event.name, data: JSON.parse(event.data) };
      }
    }
  }
  const fragment = (html) => {
    const holder = document.createElement("template");
    holder.innerHTML = html.trim();
    return holder.content.firstElementChild;
  };
  const follow = () => {
    // Keep the end in sight only for who is reading there.
    if (innerHeight + scrollY > document.documentElement.scrollHeight - 260) scrollTo({ top: document.documentElement.scrollHeight });
  };
  let running = null;

  const waiting = (zone) => {
    const article = document.createElement("article");
    article.className = "p-msg";
    article.setAttribute("aria-label", "回答（作成中）");
    article.setAttribute("aria-busy", "true");
    article.innerHTML =
      '<p class="p-msg__who">回答</p><div class="p-msg__body p-answer"></div>' +
      '<div class="p-live" role="status"><span class="k-spin" aria-hidden="true">◌</span><p><b>回答を作成しています</b><span class="k-soft k-small"></span></p></div>';
    const note = $(".p-live .k-small", article);
    const began = Date.now();
    const words = { onprem: "庁内で処理しています", domestic: "国内で処理しています", overseas: "海外で処理しています" }[zone] ?? "";
    const tick = () => { note.textContent = `　${Math.round((Date.now() - began) / 1000)}秒　${words}`; };
    tick();
    const timer = setInterval(tick, 1000);
    return { article, body: $(".p-answer", article), end: () => clearInterval(timer) };
  };

  const setBusy = (busy) => {
    const send = $("#send"), stop = $("#stop");
    if (!send || !stop) return;
    send.hidden = busy;
    stop.hidden = !busy;
  };

  const dropFrom = (element) => {
    for (let next = element; next; ) {
      const after = next.nextElementSibling;
      next.remove();
      next = after;
    }
  };

  const askStream = async (form) => {
    const flow = $("#flow");
    const place = $("#compose-problem");
    if (!flow || running) return;
    const controller = new AbortController();
    running = controller;
    setBusy(true);
    place?.replaceChildren();
    const isCompose = form.id === "compose-form";
    const data = new FormData(form);
    if (isCompose) data.delete("file");
    const zone = $('input[name="model"]:checked')?.closest(".p-model")?.dataset.zone;
    const live = waiting(zone);
    let conversation = "";
    let finished = false;
    try {
      const response = await fetch(form.action, {
        method: "POST",
        body: data,
        signal: controller.signal,
        headers: { accept: "text/event-stream", "kumiai-csrf": csrf(), "kumiai-request": "fetch" },
      });
      if (!response.ok || !(response.headers.get("content-type") ?? "").includes("text/event-stream")) {
        throw { problem: await problemOf(response) };
      }
      for await (const event of serverEvents(response)) {
        if (event.name === "start") {
          conversation = event.data.conversation;
          $("#cards")?.remove();
          const replaced = form.dataset.replaces && document.getElementById(form.dataset.replaces);
          const question = document.getElementById(`m-${event.data.question}`);
          if (question) dropFrom(question);
          else if (replaced) dropFrom(replaced);
          flow.querySelectorAll(":scope > .k-banner").forEach((b) => b.remove());
          flow.append(fragment(event.data.html), live.article);
          if (isCompose) {
            $('input[name="conversation"]', form).value = conversation;
            $("textarea", form).value = "";
            $("#new-files").replaceChildren();
            form.dispatchEvent(new CustomEvent("kumiai:sent"));
            if (location.pathname !== event.data.href) {
              history.pushState({}, "", event.data.href);
              $("#title").textContent = event.data.title;
              document.title = `${event.data.title}｜${document.title.split("｜").pop()}`;
            }
          }
          live.article.scrollIntoView({ block: "end" });
        } else if (event.name === "html") {
          live.body.innerHTML = event.data.html;
          follow();
        } else if (event.name === "done") {
          finished = true;
          live.article.replaceWith(fragment(event.data.html));
          follow();
          await refreshAround();
        }
      }
      if (!finished) throw { problem: offline };
    } catch (error) {
      if (error.name === "AbortError") await showStopped(conversation, live.article);
      else {
        live.article.remove();
        if (place) showProblem(place, error.problem ?? offline);
      }
    } finally {
      live.end();
      running = null;
      setBusy(false);
      area?.focus({ preventScroll: true });
    }
  };

  const refreshAround = async () => {
    // A first answer brings the conversation into the history and its tools into the head of the page.
    const response = await fetch(location.pathname, { headers: { "kumiai-request": "fetch" } }).catch(() => null);
    if (!response?.ok) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const selector of ["#history", ".p-chat__head", ".p-compose__left"]) {
      const fresh = page.querySelector(selector);
      if (fresh) $(selector)?.replaceWith(document.adoptNode(fresh));
    }
  };

  const showStopped = async (conversation, article) => {
    // The server keeps what came so far; it may need a moment to notice that we left.
    for (let i = 0; i < 15 && conversation; i += 1) {
      await new Promise((go) => setTimeout(go, 200));
      const response = await fetch(`/apps/chat/c/${conversation}/last`, { headers: { "kumiai-request": "fetch" } }).catch(() => null);
      if (response?.status === 200) {
        article.replaceWith(fragment(await response.text()));
        await refreshAround();
        return;
      }
    }
    article.remove();
  };

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-stream]");
    if (!form) return;
    event.preventDefault();
    askStream(form);
  });
  $("#stop")?.addEventListener("click", () => running?.abort());

  // ── Attaching ───────────────────────────────────────────────────────────────────────────────────────────────────
  $("input[data-upload]")?.addEventListener("change", async (event) => {
    const input = event.target;
    const list = $("#new-files");
    const busy = document.createElement("span");
    busy.className = "p-newfile";
    busy.textContent = `${[...input.files].map((f) => f.name).join("、")} を読み取っています…`;
    list.append(busy);
    const data = new FormData();
    for (const file of input.files) data.append("file", file);
    try {
      const response = await fetch(input.dataset.upload, { method: "POST", body: data, headers: { "kumiai-csrf": csrf(), "kumiai-request": "fetch" } });
      if (!response.ok) throw await problemOf(response);
      const holder = document.createElement("template");
      holder.innerHTML = await response.text();
      list.append(holder.content);
      $("#compose-problem").replaceChildren();
    } catch (problem) {
      showProblem($("#compose-problem"), problem.title ? problem : offline);
    } finally {
      busy.remove();
      input.value = "";
    }
  });
  document.addEventListener("click", (event) => {
    const remove = event.target.closest("[data-remove]");
    if (remove) {
      remove.closest(".p-newfile").remove();
      area?.focus();
    }
  });

  // ── Copying, checklists, small comforts ─────────────────────────────────────────────────────────────────────────
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
  document.querySelectorAll("form[data-checklist]").forEach((form) => {
    const boxes = [...form.querySelectorAll('input[type="checkbox"]')];
    const button = $('button[type="submit"]', form);
    const left = $("[data-checklist-left]", form);
    const update = () => {
      const open = boxes.filter((b) => !b.checked).length;
      button.disabled = open > 0;
      left.textContent = open ? `あと${open}つ確かめると書き出せます。` : "";
    };
    form.addEventListener("change", update);
    update();
  });
  document.querySelectorAll('select[name="data_class"]').forEach((select) =>
    select.addEventListener("change", async () => {
      const models = $(".p-models");
      const chosen = $('input[name="model"]:checked')?.value;
      const response = await fetch(`/apps/chat/models?data_class=${select.value}`, { headers: { "kumiai-request": "fetch" } }).catch(() => null);
      if (!models || !response?.ok) return;
      models.replaceWith(fragment(await response.text()));
      const same = document.querySelector(`input[name="model"][value="${chosen}"]:not(:disabled)`);
      (same ?? document.querySelector('input[name="model"]:not(:disabled)'))?.click();
    }));
  document.addEventListener("click", (event) => {
    document.querySelectorAll("details.k-pop[open]").forEach((d) => { if (!d.contains(event.target)) d.open = false; });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    document.querySelectorAll("details.k-pop[open]").forEach((d) => { d.open = false; $("summary", d).focus(); });
  });
  addEventListener("popstate", () => location.reload());
})();
