// Tables: the rows of a file as { columns, rows }, every cell a text, and rows as csv.
const FIRST = /^(text|sentence_?1?|review|premise|question_?1?|content|body|text_?1)$/i;
const SECOND = /^(pair|sentence_?2|hypothesis|question_?2|text_?2|second)$/i;

const decodeText = (bytes) => {
  const start = new Uint8Array(bytes, 0, Math.min(2, bytes.byteLength));
  if (start[0] === 0xff && start[1] === 0xfe) return new TextDecoder("utf-16le").decode(bytes);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder("windows-1252").decode(bytes);
  }
};

// Records of RFC 4180: quoted fields hold separators, line breaks and doubled quotes.
const parseSeparated = (text, separator) => {
  const records = [];
  let record = [];
  let field = "";
  let quoted = false;
  const endField = () => {
    record.push(field);
    field = "";
  };
  const endRecord = () => {
    endField();
    if (record.length > 1 || record[0] !== "") records.push(record);
    record = [];
  };
  for (let at = 0; at < text.length; at++) {
    const letter = text[at];
    if (quoted) {
      if (letter !== '"') field += letter;
      else if (text[at + 1] === '"') field += text[++at];
      else quoted = false;
    } else if (letter === '"' && field === "") quoted = true;
    else if (letter === separator) endField();
    else if (letter === "\n" || letter === "\r") {
      if (letter === "\r" && text[at + 1] === "\n") at++;
      endRecord();
    } else field += letter;
  }
  if (field !== "" || record.length) endRecord();
  if (quoted) throw new Error("a quotation mark is not closed");
  return records;
};

const separatorOf = (text) => {
  const head = text.split(/[\r\n]/, 1)[0].replace(/"[^"]*"/g, "");
  const count = (letter) => head.split(letter).length;
  return [",", ";", "\t"].reduce((best, each) => (count(each) > count(best) ? each : best));
};

const cellOf = (value) => (typeof value === "string" ? value : value === null || value === undefined ? "" : JSON.stringify(value));

const parseJsonLines = (text) => {
  const objects = [];
  text.split("\n").forEach((line, index) => {
    if (!line.trim()) return;
    let value = null;
    try {
      value = JSON.parse(line);
    } catch {
      // Told below with all else that is no object.
    }
    if (value === null || typeof value !== "object" || Array.isArray(value)) {
      throw new Error(`line ${index + 1}: expected a JSON object, found something else`);
    }
    objects.push(value);
  });
  const columns = [...new Set(objects.flatMap(Object.keys))];
  return { columns, rows: objects.map((each) => columns.map((name) => cellOf(each[name]))) };
};

const parseTable = (name, text) => {
  const ending = name.split(".").pop().toLowerCase();
  if (ending === "jsonl" || ending === "ndjson") return parseJsonLines(text);
  if (ending === "csv" || ending === "tsv") {
    const [columns = [], ...rows] = parseSeparated(text, ending === "tsv" ? "\t" : separatorOf(text));
    return { columns, rows: rows.map((row) => columns.map((_, index) => row[index] ?? "")) };
  }
  if (ending !== "txt") throw new Error("expected .txt, .csv, .tsv or .jsonl, found another ending");
  return { columns: ["line"], rows: text.split(/\r\n|\r|\n/).filter((line) => line.trim()).map((line) => [line]) };
};

// The columns that most likely hold the text and the second one: by their names, else by how long their cells are.
const likelyColumns = ({ columns, rows }) => {
  const size = (index) => rows.slice(0, 100).reduce((sum, row) => sum + row[index].length, 0);
  const byLength = columns.map((_, index) => index).sort((a, b) => size(b) - size(a));
  const named = (pattern) => columns.findIndex((name) => pattern.test(name.trim()));
  const second = named(SECOND);
  const first = named(FIRST) >= 0 ? named(FIRST) : byLength.find((index) => index !== second) ?? 0;
  return [first, second >= 0 && second !== first ? second : byLength.find((index) => index !== first) ?? first];
};

const csvCell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
const csvOf = (records) => records.map((record) => `${record.map((each) => csvCell(String(each))).join(",")}\r\n`).join("");
