// The browser of single answers in the page of an evaluation: filters, list, one answer, and the colours of the page.
//
// The data is JSON in the page (tools/src/report/evaluation/data.rs documents its fields). The state is in the address after
// #, so that an address leads to an answer:
//
//   b=NAME benchmark   c=CATEGORY   show=wrong|partial|right|cut|error   runs=differ|a|b|none   q=TEXT   r=NAME:LINE
//
// Texts of models and data files are hostile: they reach the page by textContent only, never as HTML.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const ROW_HEIGHT = 48;
  const MARGIN_ROWS = 8;
  // Characters of a text that are shown before the reader asks for more.
  const MAX_SHOWN = 12000;

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // Text with control characters, and characters that change its direction, as escapes.
  const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
  const visible = (text) => String(text ?? "").replace(UNSAFE, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
  const grouped = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, "\u202f");

  // ---- Colours ----------------------------------------------------------------------------------------------------

  const STORE = "reel.theme";
  const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark.matches);

  function showTheme() {
    const button = byId("theme");
    button.hidden = false;
    button.textContent = isDark() ? "☀" : "☾";
    button.title = isDark() ? "Light colours" : "Dark colours";
    button.setAttribute("aria-label", button.title);
  }

  function changeTheme() {
    const wanted = isDark() ? "light" : "dark";
    if ((wanted === "dark") === systemIsDark.matches) delete root.dataset.theme;
    else root.dataset.theme = wanted;
    try {
      localStorage.setItem(STORE, root.dataset.theme ?? "");
    } catch {
      // A page from a file may have no storage; the choice then lasts as long as the page.
    }
    showTheme();
  }

  try {
    const stored = localStorage.getItem(STORE);
    if (stored === "light" || stored === "dark") root.dataset.theme = stored;
  } catch {
    // As above.
  }
  byId("theme").addEventListener("click", changeTheme);
  systemIsDark.addEventListener("change", showTheme);
  showTheme();

  // ---- Data -------------------------------------------------------------------------------------------------------

  const data = JSON.parse(document.querySelector("script[type='application/json']").textContent);
  const { benchmarks, answers, strips, reasons } = data;
  const hasTwoRuns = data.runs.length > 1;
  const indexOfName = new Map(benchmarks.map((benchmark, index) => [benchmark.name, index]));
  const indexOfRow = new Map(answers.map((answer, index) => [rowName(answer), index]));

  function rowName(answer) {
    return `${benchmarks[answer.b].name}:${answer.line}`;
  }

  // What a run's answer is worth: right, partial, wrong, error, or none if the run was not asked.
  function verdict(run) {
    if (!run) return "none";
    if (run.error !== undefined) return "error";
    return run.score === 1 ? "right" : run.score > 0 ? "partial" : "wrong";
  }

  const MARKS = { right: "✓", partial: "≈", wrong: "✗", error: "!", none: "–" };
  const WORDS = { right: "right", partial: "partly right", wrong: "wrong", error: "error", none: "not asked" };

  function mark(run) {
    const kind = verdict(run);
    return element("i", { className: `mark ${kind}`, textContent: MARKS[kind], title: WORDS[kind], role: "img", ariaLabel: WORDS[kind] });
  }

  // The text in which the search looks, made when it is first needed.
  const searchTexts = new Array(answers.length);
  function searchText(index) {
    const { id, question, options, truth, path, runs } = answers[index];
    const outputs = runs.flatMap((run) => (run ? [run.output, run.error] : []));
    return (searchTexts[index] ??= [id, question, ...options, truth, path, ...outputs].join("\n").toLowerCase());
  }

  // ---- State ------------------------------------------------------------------------------------------------------

  const FIELDS = { b: "benchmark", c: "category", show: "show", runs: "runs", q: "search" };
  const state = { b: "", c: "", show: "", runs: "", q: "", r: "" };
  // The indices of the answers that the filters let through, in order.
  let found = [];

  const SHOW = {
    wrong: ([run]) => ["wrong", "error"].includes(verdict(run)),
    partial: ([run]) => verdict(run) === "partial",
    right: ([run]) => verdict(run) === "right",
    cut: (runs) => runs.some((run) => run?.cut),
    error: (runs) => runs.some((run) => run?.error !== undefined),
  };
  const RUNS = {
    differ: ([a, b]) => Boolean(a && b) && a.score !== b.score,
    a: ([a, b]) => Boolean(a && b) && a.score > b.score,
    b: ([a, b]) => Boolean(a && b) && b.score > a.score,
    none: ([a, b]) => Boolean(a && b) && a.score === 0 && b.score === 0,
  };

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of Object.keys(state)) state[name] = given.get(name) ?? "";
    if (!indexOfName.has(state.b)) state.b = "";
    if (!SHOW[state.show]) state.show = "";
    if (!RUNS[state.runs] || !hasTwoRuns) state.runs = "";
  }

  function writeAddress() {
    const given = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
    history.replaceState(null, "", `#${given}`);
  }

  function options(select, texts) {
    select.replaceChildren(...texts.map(([value, text]) => element("option", { value, textContent: visible(text) })));
  }

  // Sets the fields to the state. The categories are those of the chosen benchmarks.
  function showFilters() {
    const chosen = state.b ? [benchmarks[indexOfName.get(state.b)]] : benchmarks;
    const categories = [...new Set(chosen.flatMap((benchmark) => benchmark.categories))].sort();
    if (!categories.includes(state.c)) state.c = "";
    options(byId("category"), [["", "all"], ...categories.map((name) => [name, name])]);
    for (const [name, id] of Object.entries(FIELDS)) {
      const field = byId(id);
      if (field && field.value !== state[name]) field.value = state[name];
    }
  }

  // Finds the answers that the filters let through, and shows the chosen one, else the first.
  function filter() {
    const wanted = state.b ? indexOfName.get(state.b) : undefined;
    const text = state.q.toLowerCase();
    found = [];
    answers.forEach((answer, index) => {
      if (wanted !== undefined && answer.b !== wanted) return;
      if (state.c && benchmarks[answer.b].categories[answer.c] !== state.c) return;
      if (state.show && !SHOW[state.show](answer.runs)) return;
      if (state.runs && !RUNS[state.runs](answer.runs)) return;
      if (text && !searchText(index).includes(text)) return;
      found.push(index);
    });
    const of = found.length === answers.length ? "" : ` of ${grouped(answers.length)}`;
    byId("count").textContent = `${grouped(found.length)}${of} ${answers.length === 1 ? "answer" : "answers"}`;
    const kept = found.indexOf(indexOfRow.get(state.r));
    spacer.style.height = `${found.length * ROW_HEIGHT}px`;
    choose(Math.max(0, kept), false);
  }

  // ---- List -------------------------------------------------------------------------------------------------------

  // Only the rows in view, and some around them, are in the document: ten thousand would make the page slow.
  const list = byId("list");
  const spacer = element("div");
  spacer.setAttribute("role", "presentation");
  list.append(spacer);
  let position = 0;

  function rowElement(at) {
    const answer = answers[found[at]];
    const row = element("div", { className: "row", id: `row-${at}`, role: "option" });
    row.style.top = `${at * ROW_HEIGHT}px`;
    row.setAttribute("aria-selected", String(at === position));
    row.setAttribute("aria-posinset", at + 1);
    row.setAttribute("aria-setsize", found.length);
    const benchmark = benchmarks[answer.b];
    const category = benchmark.categories[answer.c];
    const first = answer.runs.map((run) => (run ? given(run).slice(0, 40) : "–")).join(" / ");
    const parts = [state.b ? "" : benchmark.title, state.c ? "" : category, `${first} → ${answer.truth}`];
    const marks = element("span", { className: "marks" }, ...answer.runs.map(mark));
    const question = element("span", { textContent: visible((answer.question ?? answer.id ?? "").slice(0, 200)) });
    const under = element("span", { className: "under", textContent: visible(parts.filter(Boolean).join(" · ")) });
    row.append(marks, question, under);
    row.addEventListener("click", () => choose(at, true));
    return row;
  }

  function showRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - MARGIN_ROWS);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + MARGIN_ROWS);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(rowElement(at));
    spacer.replaceChildren(...rows);
    if (found.length) list.setAttribute("aria-activedescendant", `row-${position}`);
    else list.removeAttribute("aria-activedescendant");
  }

  // Shows the answer at a place of the list, and the row itself.
  function choose(at, isUsers) {
    position = Math.min(Math.max(0, at), Math.max(0, found.length - 1));
    const top = position * ROW_HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight)
      list.scrollTop = Math.max(0, top + ROW_HEIGHT - list.clientHeight);
    showRows();
    const answer = answers[found[position]];
    if (isUsers && answer) {
      state.r = rowName(answer);
      writeAddress();
    }
    showAnswer(answer);
  }

  list.addEventListener("scroll", showRows, { passive: true });
  new ResizeObserver(showRows).observe(list);

  // ---- One answer -------------------------------------------------------------------------------------------------

  // The answer that was found in an output.
  const given = (run) => run.answer ?? run.output.trim();

  // The chain of thought of an output, and the rest. Without an end, all is thinking: the output was cut.
  function parts(output) {
    const match = /^\s*<think>([\s\S]*?)(?:<\/think>([\s\S]*))?$/.exec(output);
    return match ? { think: match[1].trim(), rest: (match[2] ?? "").trim() } : { think: "", rest: output.trim() };
  }

  // A long text: its beginning, and a button that shows the rest.
  function longText(text) {
    const box = element("div", { className: "text" });
    box.textContent = visible(text.slice(0, MAX_SHOWN));
    if (text.length <= MAX_SHOWN) return [box];
    const left = text.length - MAX_SHOWN;
    const more = element("button", { type: "button", className: "more", textContent: `Show ${grouped(left)} more characters` });
    more.addEventListener("click", () => {
      box.textContent = visible(text);
      more.remove();
    });
    return [box, more];
  }

  const seconds = (time) => `${time.toFixed(time < 100 ? 1 : 0)} s`;

  // The frames of a video. They lie side by side in one image, of which each element shows its part.
  function stripElement(strip) {
    const { src, shown, frames, width, height, times } = strip;
    const items = Array.from({ length: shown }, (_, i) => {
      const image = element("img", { src, alt: `frame ${i + 1} of ${shown}` });
      image.style.aspectRatio = `${width} / ${height}`;
      image.style.objectPosition = `${shown > 1 ? (100 * i) / (shown - 1) : 0}% 0`;
      const time = times[i] === undefined ? [] : [element("small", { textContent: seconds(times[i]) })];
      return element("li", {}, image, ...time);
    });
    const box = element("ol", { className: "strip", ariaLabel: "frames" }, ...items);
    box.style.setProperty("--columns", shown);
    if (shown === 1) box.style.maxWidth = `${width}px`;
    const count = shown < frames ? `${shown} of the ${frames} frames that the model saw` : `${frames} ${frames === 1 ? "frame" : "frames"}`;
    return [box, element("p", { className: "note", textContent: `${count}, shrunk` })];
  }

  function framesElements(answer) {
    const path = answer.path ? ` ${answer.path}` : "";
    if (answer.strip === undefined) {
      return [element("p", { className: "noframes", textContent: visible(`No frames:${path ? `${path}:` : ""} ${reasons[answer.reason]}`) })];
    }
    const made = strips[answer.strip].flatMap(stripElement);
    const last = made[made.length - 1];
    last.textContent = visible(`${last.textContent}${path ? ` ·${path}` : ""}`);
    return made;
  }

  // Whether an option is the one that an answer names: `B`, or the whole text.
  function isOption(option, answer) {
    const letter = /^\s*\(?([A-Z])[.):]/.exec(option)?.[1];
    return answer !== "" && (letter === answer || option.trim() === answer);
  }

  function optionElements(answer) {
    const items = answer.options.map((option) => {
      const isTruth = isOption(option, answer.truth);
      const by = answer.runs.flatMap((run, i) => (run && isOption(option, given(run)) ? [hasTwoRuns ? "AB"[i] : ""] : []));
      const names = by.filter(Boolean).join(", ");
      const words = [isTruth ? "correct" : "", by.length ? `answered${names ? ` by ${names}` : ""}` : ""];
      const note = element("small", { textContent: words.filter(Boolean).join(" · ") });
      const name = `${isTruth ? "truth" : ""} ${by.length ? "chosen" : ""}`.trim();
      return element("li", { className: name }, element("span", { textContent: visible(option) }), note);
    });
    return items.length ? [element("ul", { className: "choices" }, ...items)] : [];
  }

  function runElement(answer, run, index) {
    const kind = verdict(run);
    const box = element("section", { className: `answer ${kind}` });
    const name = hasTwoRuns ? `${"AB"[index]}: ${data.runs[index]} · ` : "";
    const score = kind === "partial" ? ` (${Math.round(100 * run.score)} %)` : "";
    const head = element("p", {}, mark(run), element("b", { textContent: visible(`${name}${WORDS[kind]}${score}`) }));
    box.append(head);
    if (!run) return box;
    if (run.cut) {
      const textContent = "truncated at the maximum number of tokens";
      head.append(element("span", { className: "flag", textContent }));
    }
    if (run.error !== undefined) {
      head.append(element("span", { className: "flag bad", textContent: "no answer" }));
      box.append(...longText(run.error));
      return box;
    }
    if (run.answer === null) head.append(element("span", { className: "flag", textContent: "no <answer>: the whole output counts" }));
    const facts = element("dl");
    const tokens = run.tokens === undefined ? "" : `${grouped(run.tokens)}${run.prompt_tokens === undefined ? "" : `, prompt ${grouped(run.prompt_tokens)}`}`;
    const shown = given(run);
    const clipped = shown.length > 300 ? `${shown.slice(0, 300)}…` : shown;
    for (const [term, text] of [["answer", clipped || "(empty)"], ["correct", answer.truth], ["tokens", tokens]]) {
      if (text) facts.append(element("dt", { textContent: term }), element("dd", { textContent: visible(text) }));
    }
    box.append(facts);
    const { think, rest } = parts(run.output);
    if (think) {
      const words = think.split(/\s+/).length;
      const summary = element("summary", { textContent: `thinking, ${grouped(words)} words` });
      box.append(element("details", { open: !rest, className: "think" }, summary, ...longText(think)));
    }
    if (rest) box.append(...longText(rest));
    if (run.omitted) {
      box.append(element("p", { className: "note", textContent: `${grouped(run.omitted)} more bytes are in the predictions file only` }));
    }
    return box;
  }

  function showAnswer(answer) {
    const detail = byId("detail");
    if (!answer) {
      detail.replaceChildren(element("p", { className: "noframes", textContent: "No answer passes the filters." }));
      return;
    }
    const move = (by, text, label) => {
      const button = element("button", { type: "button", textContent: text, ariaLabel: label, disabled: !(position + by in found) });
      button.addEventListener("click", () => choose(position + by, true));
      button.dataset.by = by;
      return button;
    };
    const benchmark = benchmarks[answer.b];
    const where = [benchmark.title, benchmark.categories[answer.c], answer.id, `line ${answer.line}`].filter(Boolean).join(" · ");
    const focused = document.activeElement?.dataset?.by;
    const header = element(
      "header",
      {},
      element("span", { className: "where", textContent: visible(where) }),
      move(-1, "‹ previous", "previous answer"),
      element("span", { textContent: `${grouped(position + 1)} of ${grouped(found.length)}` }),
      move(1, "next ›", "next answer"),
    );
    detail.replaceChildren(
      header,
      ...framesElements(answer),
      element("h3", { className: "text question", textContent: visible(answer.question ?? answer.id ?? "") }),
      ...optionElements(answer),
      element("div", { className: "outputs" }, ...answer.runs.map((run, i) => runElement(answer, run, i))),
    );
    // The buttons are new; the one that was pressed keeps the focus.
    if (focused) detail.querySelector(`button[data-by="${focused}"]`)?.focus();
  }

  // ---- Start ------------------------------------------------------------------------------------------------------

  options(byId("benchmark"), [["", "all"], ...benchmarks.map(({ name, title }) => [name, title])]);
  const form = document.querySelector(".filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  let waiting = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    const apply = () => {
      for (const [name, id] of Object.entries(FIELDS)) state[name] = byId(id)?.value ?? "";
      showFilters();
      filter();
      writeAddress();
    };
    waiting = setTimeout(apply, event.target.id === "search" ? 120 : 0);
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    for (const name of Object.keys(FIELDS)) state[name] = "";
    showFilters();
    filter();
    writeAddress();
  });
  addEventListener("hashchange", () => {
    readAddress();
    showFilters();
    filter();
    byId("answers").scrollIntoView({ block: "start" });
  });

  const PAGE = () => Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
  const LIST_KEYS = {
    ArrowDown: () => position + 1,
    ArrowUp: () => position - 1,
    PageDown: () => position + PAGE(),
    PageUp: () => position - PAGE(),
    Home: () => 0,
    End: () => found.length - 1,
  };
  list.addEventListener("keydown", (event) => {
    const place = LIST_KEYS[event.key];
    if (!place || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    choose(place(), true);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
    if (event.key === "j") choose(position + 1, true);
    else if (event.key === "k") choose(position - 1, true);
    else if (event.key === "/") byId("search").focus();
    else return;
    event.preventDefault();
  });

  document.querySelectorAll(".filters, .browser, .keys").forEach((part) => (part.hidden = false));
  readAddress();
  showFilters();
  filter();
})();
