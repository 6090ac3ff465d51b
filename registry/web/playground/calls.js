// The same call from elsewhere: lines that run as they stand, the key by a variable of the environment.
const KEY_VARIABLE = "ADAPTER_REGISTRY_KEY";

const shellWord = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const rowsJson = (rows) => `{"rows": [\n    ${rows.map((row) => JSON.stringify(row)).join(",\n    ")}\n  ]}`;

const curlCall = (rows) =>
  [
    `curl -sS ${shellWord(address("v1/predict"))}`,
    ...(access.key ? [`  -H "Authorization: Bearer $${KEY_VARIABLE}"`] : []),
    `  -H 'Content-Type: application/json'`,
    `  -d ${shellWord(rowsJson(rows))}`,
  ].join(" \\\n");

// A text in JSON is a text in Python.
const pythonCall = (rows) => {
  const place = JSON.stringify(address("").replace(/\/$/, ""));
  const fields = (row) => [row.adapter, row.text, ...(row.pair === undefined ? [] : [row.pair])];
  return [
    ...(access.key ? ["import os", ""] : []),
    "from registry import Client",
    "",
    "rows = [",
    ...rows.map((row) => `    (${fields(row).map((each) => JSON.stringify(each)).join(", ")}),`),
    "]",
    `with Client(${place}${access.key ? `, api_key=os.environ["${KEY_VARIABLE}"]` : ""}) as client:`,
    "    for answer in client.mixed(rows):",
    "        print(answer.reference, answer.label, answer.probabilities)",
  ].join("\n");
};
