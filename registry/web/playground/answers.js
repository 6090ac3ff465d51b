// The answers to what is typed: one call for all chosen sets, a card for each.
const TYPING = 250; // milliseconds without a key before the server is asked
const SHOWN_LABELS = 8;

const cards = new Map(); // name of a set to its card
let asking = new AbortController();
let timer = 0;

// Nothing is told as certain that is not.
const percent = (share) => {
  const told = share > 0 && share < 0.0005 ? "<0.1" : share < 1 && share >= 0.9995 ? ">99.9" : (100 * share).toFixed(1);
  return `${told}\u202f%`;
};
const valueText = (value) => (Array.isArray(value) ? value.join(", ") || "none of its labels" : typeof value === "number" ? value.toFixed(3) : value);

const showCards = () => {
  for (const [name, card] of cards) {
    if (sets.chosen.has(name)) continue;
    card.root.remove();
    cards.delete(name);
  }
  for (const chosen of chosenSets()) {
    if (!cards.has(chosen.name)) cards.set(chosen.name, newCard(chosen.name));
    const card = cards.get(chosen.name);
    card.about.replaceChildren(...aboutOf(chosen.known).flatMap((part) => [make("span", {}, part), " "]));
    if (!card.isAnswered) card.reference.textContent = chosen.known?.reference ?? chosen.reference;
    byId("answers").append(card.root);
  }
  byId("second").hidden = !chosenSets().some(takesPairs);
};

const newCard = (name) => {
  const id = `card-${name}`;
  const card = {
    reference: make("h3", { id }), mark: make("span", { className: "mark", hidden: true }, "text was cut"),
    label: make("p", { className: "label quiet" }), error: make("p", { className: "error", hidden: true }),
    bars: make("ul", { className: "bars" }), rest: make("ul", { className: "bars" }), about: make("p", { className: "about" }),
    summary: make("summary"), lines: new Map(), isAnswered: false,
  };
  card.more = make("details", { hidden: true }, card.summary, card.rest);
  card.root = make("article", { className: "card" },
    make("header", {}, card.reference, card.mark), card.label, card.error, card.bars, card.more, card.about);
  card.root.setAttribute("aria-labelledby", id);
  return card;
};

const aboutOf = (known) => {
  if (!known) return [];
  const score = known.scores[known.main_metric];
  const scored = score === undefined ? "" : `${known.main_metric} ${score.toFixed(3)}${known.split ? ` on ${known.split}` : ""}`;
  return [`at most ${counted(known.max_length, "token")}`, `${counted(known.parameters, "parameter")}`, scored].filter(Boolean);
};

const clearCard = (card, line) => {
  card.isAnswered = false;
  card.label.textContent = line;
  card.label.className = "label quiet";
  for (const each of [card.mark, card.error, card.more]) each.hidden = true;
  card.lines.clear();
  card.bars.replaceChildren();
};

const showAnswer = (card, answer) => {
  if (answer.error) {
    clearCard(card, "No answer");
    card.error.textContent = wordsOf(answer.error);
    card.error.hidden = false;
    return;
  }
  card.isAnswered = true;
  card.reference.textContent = answer.reference;
  card.label.textContent = valueText(answer.label);
  if (typeof answer.label === "number") card.label.append(make("small", {}, Object.keys(answer.probabilities ?? {}).join(", ")));
  card.label.className = "label";
  card.error.hidden = true;
  card.mark.hidden = !answer.truncated;
  showBars(card, answer);
};

// Few labels stay in the set's own order, so that nothing moves while one types; of many the likeliest come first.
const showBars = (card, { label, probabilities = {} }) => {
  const found = typeof label === "number" ? [] : Object.entries(probabilities); // a number has no shares
  if (found.length > SHOWN_LABELS) found.sort((a, b) => b[1] - a[1]);
  const nodes = found.map(([name, share]) => {
    if (!card.lines.has(name)) card.lines.set(name, make("li", {}, make("span", {}, name), make("span"), make("i", { ariaHidden: "true" })));
    const line = card.lines.get(name);
    line.children[1].textContent = percent(share);
    line.children[2].style.setProperty("--share", share);
    line.classList.toggle("chosen", Array.isArray(label) ? label.includes(name) : label === name);
    return line;
  });
  place(card.bars, nodes.slice(0, SHOWN_LABELS));
  place(card.rest, nodes.slice(SHOWN_LABELS));
  card.more.hidden = nodes.length <= SHOWN_LABELS;
  card.summary.textContent = counted(nodes.length - SHOWN_LABELS, "more label");
};

const place = (list, nodes) => {
  if (nodes.length !== list.children.length || nodes.some((node, index) => list.children[index] !== node)) list.replaceChildren(...nodes);
};

const typed = () => [byId("text").value, byId("pair").value];

// What is asked now: a row for each chosen set, but those that still miss their second text.
const rowsNow = () => {
  const [text, pair] = typed();
  if (!text.trim()) return [];
  const ready = chosenSets().filter(({ known }) => !known?.pair || pair.trim());
  return ready.map((chosen) => ({ chosen, row: rowOf(chosen, text, pair) }));
};

const answerSoon = () => {
  clearTimeout(timer);
  asking.abort();
  timer = setTimeout(answerNow, TYPING);
};

const answerNow = async () => {
  clearTimeout(timer);
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const wanted = rowsNow();
  const text = typed()[0].trim();
  showCalls(wanted.map((each) => each.row));
  for (const [name, card] of cards) {
    if (!wanted.some((each) => each.chosen.name === name)) clearCard(card, text ? "Waits for the second text" : "Waits for a text");
  }
  byId("answers").setAttribute("aria-busy", String(wanted.length > 0));
  if (!wanted.length) {
    byId("told").textContent = "Answers come as you type.";
    byId("spoken").textContent = "";
    return;
  }
  try {
    const started = performance.now();
    const { answers } = await ask("v1/predict", JSON.stringify({ rows: wanted.map((each) => each.row) }), { signal, waits: tell });
    if (signal.aborted) return;
    tell("");
    const took = performance.now() - started;
    wanted.forEach(({ chosen }, index) => cards.has(chosen.name) && showAnswer(cards.get(chosen.name), answers[index]));
    byId("told").textContent = `${counted(answers.length, "row")} in one call, there and back in ${took < 10 ? took.toFixed(1) : Math.round(took)}\u202fms`;
    byId("spoken").textContent = wanted.map(({ chosen }, index) => spokenOf(chosen, answers[index])).join(" ");
    byId("answers").setAttribute("aria-busy", "false");
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("answers").setAttribute("aria-busy", "false");
    tellTrouble(error);
    for (const { chosen } of wanted) if (cards.has(chosen.name)) clearCard(cards.get(chosen.name), "No answer");
    byId("told").textContent = "No answer.";
  }
};

const spokenOf = ({ reference }, answer) => {
  if (answer.error) return `${reference}: ${wordsOf(answer.error)}.`;
  const share = answer.probabilities?.[answer.label];
  return `${answer.reference}: ${valueText(answer.label)}${share === undefined ? "" : `, ${percent(share)}`}.`;
};

// Without a text the calls are told with an example, so that they can be read and run.
const showCalls = (rows) => {
  const example = chosenSets().map((chosen) => rowOf(chosen, "A text.", "A second text."));
  const told = rows.length ? rows : example;
  byId("curl").textContent = told.length ? curlCall(told) : "Choose a set first.";
  byId("python").textContent = told.length ? pythonCall(told) : "Choose a set first.";
  for (const button of document.querySelectorAll("[data-copies]")) button.disabled = !told.length;
};
