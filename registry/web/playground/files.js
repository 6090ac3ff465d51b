// A whole file: read here, asked body by body in its order, shown as a table, and saved as csv.
const MOST_FILE_ROWS = 2_000;
const MOST_FILE_BYTES = 64 * 2 ** 20;

let table = null; // { name, columns, rows }
let job = null; // { sets, rows, columns, asked, bodies, answers, shown, control }

const fileTold = (line, isBad = false) => {
  byId("file-told").textContent = line;
  byId("file-told").classList.toggle("bad", isBad);
};

const openFile = async (file) => {
  job?.control.abort();
  [table, job] = [null, null];
  byId("work").hidden = true;
  try {
    if (file.size > MOST_FILE_BYTES) throw new Error("expected at most 64 MiB, found more");
    const read = parseTable(file.name, decodeText(await file.arrayBuffer()).replace(/^\ufeff/, ""));
    if (!read.rows.length) throw new Error("expected rows, found none");
    table = { name: file.name, columns: read.columns, rows: read.rows.slice(0, MOST_FILE_ROWS) };
    const cut = read.rows.length > MOST_FILE_ROWS ? `; the first ${MOST_FILE_ROWS.toLocaleString("en")} are taken` : "";
    fileTold(`${file.name}: ${counted(read.rows.length, "row")}${cut}`);
  } catch (error) {
    fileTold(`Cannot read ${file.name}: ${error.message}.`, true);
    return;
  }
  const likely = likelyColumns(table);
  [byId("column"), byId("pair-column")].forEach((select, which) => {
    select.replaceChildren(...table.columns.map((name, index) => new Option(name || `column ${index + 1}`, index)));
    select.value = likely[which];
  });
  byId("work").hidden = false;
  forgetJob();
};

// What was answered counts for other sets or columns no longer.
const forgetJob = () => {
  job?.control.abort();
  job = null;
  for (const name of ["progress", "results", "save", "stop"]) byId(name).hidden = true;
  byId("run-told").textContent = "";
  showWork();
};

const showWork = () => {
  if (!table) return;
  const chosen = chosenSets();
  const rest = job ? job.asked.length - job.answers.length : 0;
  byId("pair-label").hidden = !chosen.some(takesPairs);
  byId("run").hidden = Boolean(job) && (job.isRunning || rest === 0);
  byId("run").disabled = !chosen.length;
  byId("run").textContent = !chosen.length ? "Choose a set first" : rest ? `Go on with the other ${counted(rest, "answer")}`
    : `Answer ${counted(table.rows.length, "row")} with ${counted(chosen.length, "set")}`;
  byId("stop").hidden = !job?.isRunning;
};

const newJob = () => {
  const chosen = chosenSets().map((each) => ({ ...each }));
  const [text, pair] = [Number(byId("column").value), Number(byId("pair-column").value)];
  const hasPairs = chosen.some(takesPairs);
  const rows = table.rows.map((row) => [row[text], ...(hasPairs ? [row[pair]] : [])]);
  const asked = rows.flatMap((row) => chosen.map((each) => rowOf(each, row[0], row[1])));
  const columns = [table.columns[text], ...(hasPairs ? [table.columns[pair]] : [])];
  byId("results").querySelector("thead").replaceChildren(
    make("tr", {}, ...["row", columns.join(", "), ...chosen.map((each) => each.reference)].map((title) => make("th", { scope: "col" }, title))));
  byId("results").querySelector("tbody").replaceChildren();
  return { sets: chosen, rows, columns, asked, bodies: bodiesOf(asked), answers: [], shown: 0, took: 0, control: new AbortController() };
};

const runFile = async () => {
  job ??= newJob();
  const own = job;
  own.control = new AbortController();
  own.isRunning = true;
  Object.assign(byId("progress"), { hidden: false, max: own.asked.length, value: own.answers.length });
  showWork();
  byId("stop").focus();
  try {
    while (own.bodies.length) {
      const started = performance.now();
      const { answers } = await ask("v1/predict", own.bodies[0].json, { signal: own.control.signal, waits: tell });
      own.took += performance.now() - started;
      own.bodies.shift();
      own.answers.push(...answers);
      tell("");
      showProgress(own);
    }
  } catch (error) {
    tellTrouble(error);
  }
  own.isRunning = false;
  if (job !== own) return;
  const isFocused = document.activeElement === byId("stop");
  showWork();
  byId("save").hidden = !own.shown;
  if (isFocused) (own.shown ? byId("save") : byId("run")).focus();
};

const showProgress = (own) => {
  byId("progress").value = own.answers.length;
  const failed = own.answers.filter((each) => each.error).length;
  const errors = failed ? `, ${failed.toLocaleString("en")} of them with an error` : "";
  byId("run-told").textContent = `${own.answers.length.toLocaleString("en")} of ${counted(own.asked.length, "answer")}${errors}, in ${(own.took / 1_000).toFixed(1)} s`;
  byId("results").hidden = false;
  const whole = Math.floor(own.answers.length / own.sets.length);
  const lines = [];
  for (; own.shown < whole; own.shown++) {
    const answers = answersTo(own, own.shown);
    const texts = make("td", { className: "text" }, ...own.rows[own.shown].map((text) => make("span", {}, text)));
    lines.push(make("tr", {}, make("th", { scope: "row" }, String(own.shown + 1)), texts, ...answers.map(answerCell)));
  }
  byId("results").querySelector("tbody").append(...lines);
};

const answersTo = (own, row) => own.answers.slice(row * own.sets.length, (row + 1) * own.sets.length);

const answerCell = (answer) => {
  if (answer.error) return make("td", {}, make("span", { className: "error" }, wordsOf(answer.error)));
  const share = answer.probabilities?.[answer.label];
  const cell = make("td", { className: "answer" }, make("b", {}, valueText(answer.label)));
  if (share !== undefined) cell.append(make("small", {}, percent(share)));
  if (answer.truncated) cell.append(make("small", { className: "cut" }, "text was cut"));
  return cell;
};

const saveFile = () => {
  const head = ["row", ...job.columns];
  for (const { reference } of job.sets) head.push(...["reference", "label", "probability", "truncated", "error"].map((name) => `${reference} ${name}`));
  const records = job.rows.slice(0, job.shown).map((texts, row) => [
    row + 1, ...texts,
    ...answersTo(job, row).flatMap(({ reference, label, probabilities, truncated, error }) =>
      error ? ["", "", "", "", wordsOf(error)]
        : [reference, Array.isArray(label) ? label.join(" ") : label, probabilities?.[label] ?? "", truncated, ""]),
  ]);
  const place = URL.createObjectURL(new Blob([csvOf([head, ...records])], { type: "text/csv" }));
  make("a", { href: place, download: `${table.name.replace(/\.[^.]*$/, "")}-answers.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(place), 10_000);
};
