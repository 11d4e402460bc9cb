// The trace reader: two arms side by side on one question. Model text enters the page as text nodes only.
(function () {
  "use strict";
  const SHOWN = 20000; // characters shown before a button offers the rest
  const VERDICTS = { correct: "right", incorrect: "wrong", undecided: "undecided" };
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("reader-data").textContent);
  const selects = { a: byId("side-a"), b: byId("side-b") };
  const filter = byId("filter");
  const question = byId("question");

  const found = new Map(); // "problem/side" -> traces in file order
  for (const trace of data.traces) {
    const key = trace.p + "/" + trace.s;
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(trace);
  }
  const tracesOf = (problem, side) => found.get(problem + "/" + side) || [];
  const attempt = { a: 0, b: 0 };

  function element(tag, content, kind) {
    const made = document.createElement(tag);
    if (content !== undefined) made.textContent = content;
    if (kind) made.className = kind;
    return made;
  }

  function option(select, value, label) {
    const made = element("option", label);
    made.value = String(value);
    select.append(made);
  }

  const first = (problem, letter) => tracesOf(problem, Number(selects[letter].value))[0];
  const isRight = (trace) => trace !== undefined && trace.status === "correct";
  const isForced = (trace) => trace !== undefined && trace.thinking.some((piece) => piece[1]);

  function passes(problem) {
    const a = first(problem, "a");
    const b = first(problem, "b");
    if (!a && !b) return false;
    switch (filter.value) {
      case "a": return isRight(a) && !isRight(b);
      case "b": return isRight(b) && !isRight(a);
      case "both": return isRight(a) && isRight(b);
      case "neither": return !isRight(a) && !isRight(b);
      case "forced": return isForced(a) || isForced(b);
      default: return true;
    }
  }

  const word = (trace) => (trace ? VERDICTS[trace.status] : "no trace");

  function listQuestions() {
    const before = question.value;
    question.replaceChildren();
    data.problems.forEach((problem, index) => {
      if (!passes(index)) return;
      const level = problem.difficulty === null ? "" : " · difficulty " + problem.difficulty;
      const id = problem.id.length > 60 ? problem.id.slice(0, 60) + "…" : problem.id;
      option(question, index, id + level + " — A " + word(first(index, "a")) + ", B " + word(first(index, "b")));
    });
    const kept = Array.from(question.options).some((item) => item.value === before);
    if (kept) question.value = before;
    showQuestion();
  }

  // Text as nodes: [text, forced] pieces, the forced ones marked; long text is cut until asked for.
  function textBlock(pieces) {
    const block = element("div", undefined, "text");
    block.dir = "auto";
    block.tabIndex = 0;
    const fill = (limit) => {
      let left = limit;
      block.replaceChildren();
      for (const [text, forced] of pieces) {
        if (left <= 0) break;
        const part = text.slice(0, left);
        left -= part.length;
        block.append(forced ? element("mark", part) : document.createTextNode(part));
      }
    };
    const total = pieces.reduce((sum, piece) => sum + piece[0].length, 0);
    fill(SHOWN);
    if (total <= SHOWN) return [block];
    const more = element("button", "show all " + total.toLocaleString("en") + " characters");
    more.type = "button";
    more.addEventListener("click", () => { fill(Infinity); more.remove(); });
    return [block, more];
  }

  function pane(letter, problem) {
    const box = byId("pane-" + letter);
    const side = Number(selects[letter].value);
    const traces = tracesOf(problem, side);
    const at = Math.min(attempt[letter], Math.max(0, traces.length - 1));
    const trace = traces[at];
    box.replaceChildren(element("h3", letter.toUpperCase() + " · " + data.sides[side]));
    if (!trace) {
      box.append(element("p", "This arm has no trace of this question in the report.", "soft"));
      return;
    }
    if (traces.length > 1) {
      const turn = element("button", "attempt " + (at + 1) + " of " + traces.length + " ›");
      turn.type = "button";
      turn.addEventListener("click", () => { attempt[letter] = (at + 1) % traces.length; showQuestion(true); });
      box.append(turn);
    }
    const verdict = element("p");
    verdict.append(element("span", VERDICTS[trace.status], trace.status));
    if (trace.reason) verdict.append(document.createTextNode(" — " + trace.reason));
    box.append(verdict);
    const size = trace.tokens === null ? "" : " (" + trace.tokens + " tokens)";
    const closed = { model: ", ended by the model", budget: ", closed by the budget", none: ", never closed" };
    box.append(element("h4", "Thinking" + size + (closed[trace.closed] || "")));
    if (trace.thinking.length) box.append(...textBlock(trace.thinking));
    else box.append(element("p", "none", "soft"));
    box.append(element("h4", "Answer"));
    if (trace.answer) box.append(...textBlock([[trace.answer, 0]]));
    else box.append(element("p", "none", "soft"));
  }

  function showQuestion(sameAttempt) {
    if (sameAttempt !== true) { attempt.a = 0; attempt.b = 0; }
    const total = question.options.length;
    const at = question.selectedIndex;
    byId("previous").disabled = at <= 0;
    byId("next").disabled = at < 0 || at >= total - 1;
    byId("count").textContent = total + " of " + data.problems.length + " questions";
    const box = byId("problem");
    box.replaceChildren();
    if (at < 0) {
      box.append(element("p", "No question fits this choice.", "soft"));
      byId("pane-a").replaceChildren();
      byId("pane-b").replaceChildren();
      return;
    }
    const index = Number(question.value);
    const problem = data.problems[index];
    box.append(element("h4", "Question"), ...textBlock([[problem.question, 0]]));
    if (problem.gold !== null) box.append(element("h4", "Right answer"), ...textBlock([[problem.gold, 0]]));
    pane("a", index);
    pane("b", index);
  }

  function step(by) {
    question.selectedIndex = Math.max(0, Math.min(question.options.length - 1, question.selectedIndex + by));
    showQuestion();
  }

  data.sides.forEach((name, index) => {
    option(selects.a, index, name);
    option(selects.b, index, name);
  });
  selects.a.value = String(data.start[0]);
  selects.b.value = String(data.start[1]);
  for (const control of [selects.a, selects.b, filter]) control.addEventListener("change", listQuestions);
  question.addEventListener("change", showQuestion);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  listQuestions();
  byId("reader-app").hidden = false;
})();
