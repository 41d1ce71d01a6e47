/* A conversation's page: sending with a key, answers as they come, files, gaps in a template.
   Without this file the same forms answer with whole pages. */
(() => {
  "use strict";
  const { $, toast, post, fragment, showProblem, offline, isConversion } = globalThis.kumiai;
  const form = $("#compose-form");
  const area = $("#compose");
  const place = $("#compose-problem");
  const flow = $("#flow");
  const newFiles = $("#new-files");
  if (!form) return;
  const say = (words) => { $("#said").textContent = words; };

  // What scrolls into sight must not end up behind the box at the bottom.
  new ResizeObserver(() => {
    const covered = getComputedStyle(form).position === "sticky" ? form.offsetHeight : 0;
    document.documentElement.style.scrollPaddingBottom = `${covered + 16}px`;
  }).observe(form);

  // ── Sending with a key ──────────────────────────────────────────────────────────────────────────────────────────
  const hint = $("#send-hint");
  const dialog = $("#ask-send-key");
  const showHint = () => {
    const words = { ctrl: "Ctrl＋Enterで送る", enter: "Enterで送る" }[area.dataset.sendKey];
    hint.hidden = !words;
    if (!words) return;
    const link = document.createElement("a");
    link.href = "/settings";
    link.textContent = words;
    link.setAttribute("aria-label", `${words}（変更する）`);
    hint.replaceChildren(link);
  };
  showHint();
  dialog.querySelectorAll("[data-choose-key]").forEach((button) => button.addEventListener("click", async () => {
    area.dataset.sendKey = button.dataset.chooseKey;
    showHint();
    dialog.close();
    area.focus();
    // Kept even if the page is left at once: it is asked only once.
    await post("/settings", new URLSearchParams({ send_key: area.dataset.sendKey }), { keepalive: true }).catch(() => {});
  }));
  area.addEventListener("keydown", (event) => {
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
      // A key that is held down must not send what it has just been told of.
      if (!running && !event.repeat) form.requestSubmit();
    }
  });

  // ── Gaps: the ［　］ of a template ───────────────────────────────────────────────────────────────────────────────
  const GAP = /［[^］\n]*］/g;
  const gaps = $("#gaps");
  const gapsLeft = () => [...area.value.matchAll(GAP)];
  const countGaps = () => {
    const left = gapsLeft().length;
    gaps.hidden = !left;
    const words = left ? `［　］があと${left}か所あります。` : "";
    const told = $("p", gaps);
    if (told.textContent !== words) told.textContent = words;
  };
  const nextGap = () => {
    const found = gapsLeft();
    const gap = found.find((g) => g.index >= area.selectionEnd) ?? found[0];
    if (!gap) return;
    area.focus();
    area.setSelectionRange(gap.index, gap.index + gap[0].length);
  };
  area.addEventListener("input", countGaps);
  $("button", gaps).addEventListener("click", nextGap);
  countGaps();
  if (gapsLeft().length) {
    area.setSelectionRange(0, 0);
    nextGap();
  }

  // ── Answers as they come ────────────────────────────────────────────────────────────────────────────────────────
  async function* serverEvents(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      for (let end; (end = buffer.indexOf("\n\n")) >= 0; buffer = buffer.slice(end + 2)) {
        const event = { name: "message", data: "" };
        for (const text of buffer.slice(0, end).split("\n")) {
          if (text.startsWith("event: ")) event.name = text.slice(7);
          if (text.startsWith("data: ")) event.data += text.slice(6);
        }
        if (event.data) yield { name: event.name, data: JSON.parse(event.data) };
      }
    }
  }
  let running = null;
  // The question whose answer is being made, once the server has it.
  let asked = null;
  let shown = location.pathname + location.search;
  const page = document.documentElement;
  /* Changes the page and stays at its end, for who was reading there. */
  const atEnd = (change) => {
    const wasThere = innerHeight + scrollY > page.scrollHeight - 160;
    change();
    if (wasThere) scrollTo({ top: page.scrollHeight });
  };
  const waiting = () => {
    const zone = $('input[name="model"]:checked')?.closest(".p-model")?.dataset.zone;
    const words = { onprem: "庁内で処理しています", domestic: "国内で処理しています", overseas: "海外で処理しています" }[zone] ?? "";
    const article = document.createElement("article");
    article.className = "p-msg";
    article.setAttribute("aria-label", "回答（作成中）");
    article.setAttribute("aria-busy", "true");
    // The seconds tick for the eye only; read out each second they would drown the answer.
    article.innerHTML =
      '<p class="p-msg__who">回答</p><div class="p-msg__body p-answer is-coming"></div>' +
      '<div class="p-live"><span class="k-spin" aria-hidden="true"></span><p><b>回答を作成しています</b><span class="k-soft k-small" aria-hidden="true"></span></p></div>';
    const note = $(".p-live .k-small", article);
    const began = Date.now();
    let isQueued = false;
    const tick = () => { note.textContent = `${Math.round((Date.now() - began) / 1000)}秒　${isQueued ? "" : words}`; };
    tick();
    const timer = setInterval(tick, 1000);
    const blocks = [];
    const body = $(".p-answer", article);
    const heading = $(".p-live b", article);
    const COMING = heading.textContent;
    const LOST = "つながり直しています";
    const queue = ({ ahead }) => {
      if (!isQueued) say("利用が集中しています。順番を待っています。");
      isQueued = true;
      heading.textContent = ahead ? `順番を待っています（前に${ahead}件）` : "順番を待っています（次です）";
    };
    const lost = () => {
      if (heading.textContent === LOST) return;
      heading.textContent = LOST;
      say("つながり直しています。");
    };
    const show = ({ from, blocks: changed }) => {
      isQueued = false;
      heading.textContent = COMING;
      for (const old of blocks.splice(from)) old.remove();
      for (const html of changed) {
        const element = fragment(html).firstElementChild;
        if (!element) continue;
        blocks.push(element);
        body.append(element);
      }
    };
    return { article, show, queue, lost, end: () => clearInterval(timer) };
  };
  const setBusy = (busy) => {
    const hadFocus = [$("#send"), $("#stop")].includes(document.activeElement);
    $("#send").hidden = busy;
    $("#stop").hidden = !busy;
    area.placeholder = busy ? "続きを書いておけます（回答が終わると送れます）" : "続けて質問する";
    if (hadFocus) (busy ? $("#stop") : area).focus({ preventScroll: true });
  };
  const dropFrom = (element) => {
    while (element) {
      const next = element.nextElementSibling;
      element.remove();
      element = next;
    }
  };
  const begin = (start, live, isCompose) => {
    $("#cards")?.remove();
    $("#main").classList.remove("is-new");
    dropFrom(document.getElementById(`m-${start.question}`));
    flow.querySelectorAll(":scope > .k-banner").forEach((banner) => banner.remove());
    flow.append(fragment(start.html), live.article);
    globalThis.htmx?.process(flow);
    if (shown !== start.href) history[isCompose ? "pushState" : "replaceState"]({}, "", start.href);
    shown = start.href;
    if (isCompose) {
      form.dispatchEvent(new CustomEvent("kumiai:sent"));
      area.value = "";
      newFiles.replaceChildren();
      for (const name of ["card_id", "folder"]) $(`input[name="${name}"]`, form).value = "";
      $('input[name="conversation"]', form).value = start.conversation;
      form.dataset.draft = `chat:${start.conversation}`;
      area.rows = 2;
      countGaps();
      document.title = `${start.title}｜${document.title.split("｜").pop()}`;
      $("#title").textContent = start.title;
    }
    const weights = $('select[name="data_class"]', form);
    const heavy = [...weights.options].findIndex((option) => option.value === start.data_class);
    if (heavy > weights.selectedIndex) {
      // 庁内のAIで送る made it heavier, and with it the rest of the conversation.
      weights.selectedIndex = heavy;
      const chosen = $(`input[name="model"][value="${start.model}"]`, form);
      if (chosen) chosen.checked = true;
      weights.dispatchEvent(new Event("change"));
    }
    for (const option of weights.options) option.disabled = option.index < weights.selectedIndex;
    // Masked, it may go where what was put in may not.
    if (start.sent_as !== start.data_class) showModels(start.sent_as, start.model);
    const question = document.getElementById(`m-${start.question}`);
    if (live.article.getBoundingClientRect().bottom > innerHeight - form.offsetHeight) question?.scrollIntoView({ block: "start" });
    scrollTo({ top: page.scrollHeight });
  };
  const finish = (article, html, words) => {
    atEnd(() => {
      const fresh = fragment(html);
      article.replaceWith(fresh);
      globalThis.htmx?.process(flow);
    });
    say(words);
  };
  const ENDS = { done: "回答が届きました。", stopped: "回答を止めました。", failed: "回答を作れませんでした。" };

  /* What the guard found, above the text, a new question's or a changed one's: it stays until a way is chosen or the
     text is sent anew. What is only told leaves the person where they were: the key that sends sends it. */
  const textOf = (asking) => $("textarea", asking) ?? area;
  const toldOf = (asking) => $('#guard input[name="told"]', asking);
  const clear = () => {
    place.replaceChildren();
    $("#guard")?.remove();
  };
  const showGuard = (asking, html) => {
    const there = $("[data-guard]", asking);
    (there ?? place).replaceChildren(fragment(html));
    const [heading, told] = [$("#guard-h"), toldOf(asking)];
    say(told ? $("#guard .p-guard__head").textContent : heading.textContent);
    (told ? textOf(asking) : heading).focus({ preventScroll: true });
    $("#guard").scrollIntoView({ block: there ? "start" : "nearest" });
  };

  /* After a lost connection: the rest of the answer as a stream, or as it was stored meanwhile. */
  const takeUp = async (conversation, question, live, signal) => {
    const ATTEMPTS = 120;
    for (let i = 0; i < ATTEMPTS; i += 1) {
      const url = `/apps/chat/c/${conversation}/live?question=${question}`;
      const response = await fetch(url, { headers: { accept: "text/event-stream", "kumiai-request": "fetch" }, signal }).catch(() => null);
      signal.throwIfAborted();
      if (response?.status === 200) return { response };
      if (response && response.status !== 204 && response.status < 500) return {};
      const html = response?.status === 204 && (await get(`/apps/chat/c/${conversation}/last?after=${question}`));
      if (html) return { html };
      live.lost();
      await new Promise((go) => setTimeout(go, 1000));
    }
    return {};
  };

  /* Shows an answer to its end, over however many connections. events: the first one, if there is one yet. */
  const hear = async (events, live, signal, start) => {
    let state = "";
    const listen = async () => {
      for await (const { name, data: told } of serverEvents(events)) {
        if (name === "start") start(told);
        else if (name === "call") asked.call_id = told.id;
        else if (name === "queue") live.queue(told);
        else if (name === "blocks") atEnd(() => live.show(told));
        else if (name === "done") {
          state = told.state;
          finish(live.article, told.html, ENDS[state]);
        }
      }
    };
    while (!state) {
      if (events)
        await listen().catch((lost) => {
          if (lost.name === "AbortError" || !asked) throw lost;
        });
      if (state) break;
      if (!asked) throw offline;
      const rest = await takeUp(asked.conversation, asked.question, live, signal);
      if (rest.html) {
        state = asked.isStopped ? "stopped" : "done";
        finish(live.article, rest.html, ENDS[state]);
      } else if (rest.response) events = rest.response;
      else throw offline;
    }
  };
  /* A page that is opened while an answer is being made shows it as it comes. */
  const follow = async (note) => {
    const conversation = $('input[name="conversation"]', form).value;
    const controller = new AbortController();
    running = controller;
    setBusy(true);
    const live = waiting();
    asked = { conversation, question: note.dataset.question, call_id: note.dataset.call };
    dropFrom(document.getElementById(`m-${asked.question}`).nextElementSibling);
    flow.append(live.article);
    live.article.scrollIntoView({ block: "nearest" });
    try {
      await hear(null, live, controller.signal);
      await refreshAround(conversation);
    } catch (problem) {
      live.article.remove();
      showProblem(place, problem.title ? problem : offline);
    } finally {
      live.end();
      running = asked = null;
      setBusy(false);
    }
  };

  const ask = async (asking, submitter) => {
    if (running) return;
    if (submitter?.value === "cancel") {
      clear();
      textOf(asking).focus();
      return;
    }
    const isCompose = asking === form;
    const controller = new AbortController();
    running = controller;
    setBusy(true);
    const told = toldOf(asking)?.value;
    clear();
    let live = null;
    let shownGuard = "";
    let conversation = $('input[name="conversation"]', form).value;
    try {
      if (isCompose && !(await uploaded())) return;
      live = waiting();
      const data = new FormData(asking);
      if (submitter) data.set(submitter.name, submitter.value);
      data.delete("file");
      if (told) data.set("told", told);
      for (const name of ["model", "data_class"]) {
        const chosen = new FormData(form).get(name);
        if (!data.has(name) && chosen) data.set(name, chosen);
      }
      say("回答を作成しています。");
      const response = await post(asking.action, data, { accept: "text/event-stream", signal: controller.signal });
      if ((response.headers.get("content-type") ?? "").startsWith("text/html")) {
        shownGuard = await response.text();
        return;
      }
      await hear(response, live, controller.signal, (told) => {
        conversation = told.conversation;
        asked = { conversation, question: told.question, call_id: "" };
        begin(told, live, isCompose);
      });
      tellOthers(conversation);
      await refreshAround(conversation);
    } catch (problem) {
      if (problem.name === "AbortError") await showStopped(conversation, live.article);
      else {
        // What came so far is kept by the server; the page shows it when it is reached again.
        live?.article.remove();
        const gone = { detail: "消されたか、ほかの画面で変わりました。ページを開き直してください。書いた文章は残っています。" };
        showProblem(place, problem.title ? { ...problem, ...(problem.status === 404 && gone) } : offline);
      }
    } finally {
      live?.end();
      running = asked = null;
      setBusy(false);
      if (shownGuard) showGuard(asking, shownGuard);
      else if (isCompose) area.focus({ preventScroll: true });
    }
  };
  const get = async (url) => {
    const response = await fetch(url, { headers: { "kumiai-request": "fetch", "hx-request": "true" } }).catch(() => null);
    return response?.status === 200 ? response.text() : null;
  };
  const refreshAround = async (conversation) => {
    // A first answer brings the conversation into the history and its tools into the head of the page.
    const html = await get(`/apps/chat/c/${conversation}/around`);
    if (!html) return;
    const fresh = fragment(html);
    for (const selector of ["#history", "#head", ".p-compose__left"]) {
      const there = $(selector);
      const replacement = fresh.querySelector(selector);
      if (!there || !replacement) continue;
      if (there.contains(document.activeElement) || (selector === "#history" && $("#hq").value)) continue;
      there.replaceWith(replacement);
      globalThis.htmx?.process(replacement);
    }
  };
  const showStopped = async (conversation, article) => {
    // The server keeps what came so far; it may need a moment to notice that we left.
    const last = article.previousElementSibling?.dataset.message;
    for (let i = 0; i < 20 && conversation && article.isConnected; i += 1) {
      await new Promise((go) => setTimeout(go, 150));
      const html = await get(`/apps/chat/c/${conversation}/last?after=${last ?? ""}`);
      if (html) {
        finish(article, html, ENDS.stopped);
        tellOthers(conversation);
        await refreshAround(conversation);
        return;
      }
    }
    article.remove();
  };
  document.addEventListener("submit", (event) => {
    const asking = event.target.closest("form[data-stream]");
    if (!asking) return;
    event.preventDefault();
    ask(asking, event.submitter?.name === "way" ? event.submitter : undefined);
  });
  $("#stop").addEventListener("click", () => {
    if (!asked) {
      running?.abort();
      return;
    }
    asked.isStopped = true;
    const { conversation, question, call_id } = asked;
    post(`/apps/chat/c/${conversation}/stop`, new URLSearchParams({ question, call_id })).catch(() => running?.abort());
  });

  // ── Several tabs with one conversation ──────────────────────────────────────────────────────────────────────────
  const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("kumiai-chat") : null;
  const tellOthers = (conversation) => channel?.postMessage({ conversation });
  channel?.addEventListener("message", ({ data }) => {
    if (data.conversation !== $('input[name="conversation"]', form).value || running || $("#others")) return;
    const note = fragment(
      '<div class="k-banner k-banner--thin" id="others" role="status"><div class="k-banner__body"><p><b>ほかの画面で、この会話が続いています。</b>' +
      '<a>続きを表示する</a></p></div></div>').firstElementChild;
    $("a", note).href = location.pathname;
    place.append(note);
  });

  // ── Files ───────────────────────────────────────────────────────────────────────────────────────────────────────
  const reading = new Set();
  const changed = () => form.dispatchEvent(new CustomEvent("kumiai:files"));
  const uploaded = async () => {
    // Sent while a file is still being read, the question waits for it; if it cannot be read, nothing is sent.
    if (reading.size) say("資料を読み取っています。終わりしだい送ります。");
    return (await Promise.all(reading)).every(Boolean);
  };
  const attach = (files) => {
    place.replaceChildren();
    for (const file of files) {
      const work = read(file).finally(() => reading.delete(work));
      reading.add(work);
    }
  };
  const read = async (file) => {
    const busy = document.createElement("div");
    busy.className = "p-newfile is-busy";
    busy.innerHTML = '<span class="k-spin" aria-hidden="true"></span><p role="status"></p>';
    $("p", busy).textContent = `${file.name} を読み取っています…`;
    newFiles.append(busy);
    const data = new FormData();
    data.append("file", file);
    try {
      const response = await post("/apps/chat/files", data);
      busy.replaceWith(fragment(await response.text()));
      followRecordings();
      changed();
      return true;
    } catch (problem) {
      busy.remove();
      const told = problem.title ? problem : offline;
      showProblem(place, { ...told, title: told.status === 401 ? told.title : `「${file.name}」：${told.title}` });
      return false;
    }
  };
  /* A recording is heard for minutes: its chip tells how far it is, until it is as any other file. */
  const hearing = async (chip) => {
    while (chip.isConnected) {
      await new Promise((go) => setTimeout(go, 2000));
      const html = await get(`/apps/chat/files?ids=${chip.dataset.hearing}`);
      const fresh = html && fragment(html).firstElementChild;
      if (!fresh || !chip.isConnected) continue;
      if (fresh.dataset.hearing) {
        $("p > span", chip).textContent = $("p > span", fresh).textContent;
        continue;
      }
      const hadFocus = chip.contains(document.activeElement);
      chip.replaceWith(fresh);
      if (hadFocus) $("[data-remove]", fresh).focus();
      changed();
      say(`${chip.dataset.name}：${$("p > span", fresh).textContent}`);
      // What could not be sent before can be now.
      if ($("[data-hearing]", newFiles) || !$('[data-type="urn:problem:chat:not-heard-yet"]', place)) continue;
      place.replaceChildren();
      toast("聞き取りが終わりました。もう一度送れます");
    }
  };
  const followRecordings = () => {
    for (const chip of newFiles.querySelectorAll("[data-hearing]:not([data-followed])")) {
      chip.dataset.followed = "";
      hearing(chip);
    }
  };
  followRecordings();
  const input = $("#file");
  input.addEventListener("change", () => {
    attach([...input.files]);
    input.value = "";
  });
  form.addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    form.classList.add("is-drop");
  });
  for (const name of ["dragleave", "drop"]) form.addEventListener(name, () => form.classList.remove("is-drop"));
  form.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    attach([...event.dataTransfer.files]);
  });
  area.addEventListener("paste", (event) => {
    // A table copied in Excel comes as text and as a picture; the text is meant.
    if (!event.clipboardData.files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    attach([...event.clipboardData.files]);
  });
  newFiles.addEventListener("click", (event) => {
    const remove = event.target.closest("[data-remove]");
    if (!remove) return;
    remove.closest(".p-newfile").remove();
    changed();
    area.focus();
  });

  // ── What a machine read or heard, corrected over the page before it is sent ─────────────────────────────────────
  const panel = $("#dialog");
  // A key closes a dialog at once; what was typed in it is there again when it is opened anew.
  const unsaved = new Map();
  const correcting = () => $("form[data-correct]", panel);
  panel.addEventListener("kumiai:opened", () => {
    const id = correcting()?.dataset.correct;
    if (!unsaved.has(id)) return;
    $("textarea", panel).value = unsaved.get(id);
    toast("書きかけの文を戻しました");
  });
  panel.addEventListener("click", (event) => {
    if (event.target.closest("[data-drop]")) correcting().reset();
  });
  panel.addEventListener("close", () => {
    const open = correcting();
    if (!open) return;
    const { value, defaultValue } = $("textarea", open);
    if (value === defaultValue) unsaved.delete(open.dataset.correct);
    else unsaved.set(open.dataset.correct, value);
  });
  /* A file as it is now, in its place among those that wait; how it is to go stays as it was chosen. */
  const renew = (fresh) => {
    const there = $(`input[name="file_ids"][value="${$('input[name="file_ids"]', fresh)?.value}"]`, newFiles)?.closest(".p-newfile");
    const [before, after] = [there && $("p", there), $("p", fresh)];
    if (!there || before.textContent === after.textContent) return;
    const way = $("select", before)?.value;
    if (way) $("select", after).value = way;
    before.replaceWith(after);
    there.classList.toggle("is-warn", fresh.classList.contains("is-warn"));
  };
  panel.addEventListener("submit", async (event) => {
    const open = correcting();
    if (event.target !== open) return;
    event.preventDefault();
    const buttons = open.querySelectorAll("button");
    const data = new URLSearchParams(new FormData(open, event.submitter));
    buttons.forEach((button) => { button.disabled = true; });
    try {
      const fresh = fragment(await (await post(open.action, data)).text()).firstElementChild;
      renew(fresh);
      open.reset();
      panel.close();
      say(`${$("b", fresh).textContent}：${$("p > span", fresh).textContent}`);
    } catch (problem) {
      showProblem($("[data-problem]", open), problem.title ? problem : offline);
    } finally {
      buttons.forEach((button) => { button.disabled = false; });
    }
  });
  // Its own page may have been used in another tab.
  document.addEventListener("visibilitychange", async () => {
    const ids = [...newFiles.querySelectorAll(".p-newfile:has([data-dialog]) input[name=file_ids]")].map((field) => field.value);
    if (document.hidden || !ids.length) return;
    const html = await get(`/apps/chat/files?ids=${ids.join(",")}`);
    if (html) [...fragment(html).children].forEach(renew);
  });

  form.addEventListener("kumiai:restored", async ({ detail }) => {
    if (!detail.files?.length) return;
    const html = await get(`/apps/chat/files?ids=${detail.files.join(",")}`);
    if (html) newFiles.append(fragment(html));
    followRecordings();
  });

  // ── The weight of what is put in decides which models may answer ─────────────────────────────────────────────────
  const showModels = async (weight, model) => {
    const html = await get(`/apps/chat/models?data_class=${weight}&model=${model}`);
    if (html) $("#models").replaceWith(fragment(html));
    return Boolean(html);
  };
  $('select[name="data_class"]', form).addEventListener("change", async (event) => {
    const before = $('input[name="model"]:checked');
    if (!(await showModels(event.target.value, before?.value ?? ""))) return;
    if ($('input[name="model"]:checked')) return;
    const other = $('#models input[name="model"]:not(:disabled)');
    if (!other) return;
    other.checked = true;
    const name = (option) => $(".p-model__name", option.closest(".p-model")).textContent;
    toast(before ? `「${name(before)}」では扱えないため、「${name(other)}」に替えました` : `「${name(other)}」を選びました`);
  });
  document.addEventListener("click", (event) => {
    const clear = event.target.closest("[data-clear]");
    if (clear) $(clear.dataset.clear).value = "";
  });
  addEventListener("popstate", () => {
    // Also fired for a link within the page, such as 本文へ移動.
    if (location.pathname + location.search !== shown) location.reload();
  });
  const coming = $("#coming");
  if (coming) follow(coming);
})();
