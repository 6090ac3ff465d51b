// The server: requests to it and to nothing else, and its errors, each told in one line.
const BODY_ROWS = 256; // that the server takes in one body
const BODY_BYTES = 900_000; // a little less than it takes

const address = (path) => new URL(path, document.baseURI).href;
const access = { key: "" };

class Trouble extends Error {
  constructor(status, words, wait = null) {
    super(words);
    this.status = status;
    this.wait = wait; // seconds
  }

  get line() {
    if (this.status === 0) return `The server at ${location.origin} does not answer. Is it running?`;
    if (this.status === 401) {
      return access.key ? `This API key is not known here: ${this.message}` : `An API key is wanted: ${this.message}`;
    }
    if (this.status === 429) return `The server is still busy: ${this.message}`;
    if (this.status === 503) return `The server takes no requests now: ${this.message}`;
    return this.message;
  }
}

const wordsOf = (error) => (error.hint ? `${error.message}; ${error.hint}` : error.message);

const once = async (path, body, signal) => {
  const headers = {};
  if (access.key) headers.authorization = `Bearer ${access.key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const options = { method: body === undefined ? "GET" : "POST", headers, body, signal, cache: "no-store" };
  let response, text;
  try {
    response = await fetch(address(path), options);
    text = await response.text();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Trouble(0, String(error.message));
  }
  let told = null;
  try {
    told = JSON.parse(text);
  } catch {
    // A proxy's page, told by its status.
  }
  if (response.ok && told) return told;
  const words = told?.error?.message ? wordsOf(told.error) : `expected JSON of this server, found another body, of status ${response.status}`;
  throw new Trouble(response.status, words, Number(response.headers.get("retry-after")) || null);
};

const pause = (seconds, signal) =>
  new Promise((go, end) => {
    const leave = () => {
      clearTimeout(timer);
      end(new DOMException("left", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", leave);
      go();
    }, 1_000 * seconds);
    signal?.addEventListener("abort", leave, { once: true });
  });

// Asks, and once more where the server is busy, after the seconds that it names; `waits` is told of them.
const ask = async (path, body, { signal, waits } = {}) => {
  try {
    return await once(path, body, signal);
  } catch (trouble) {
    if (trouble.status !== 429) throw trouble;
    const wait = Math.min(trouble.wait ?? 1, 60);
    waits?.(`The server is busy: asking again in ${wait} s.`);
    await pause(wait, signal);
    return once(path, body, signal);
  }
};

// Bodies of rows, each as many as the server takes.
const bodiesOf = (rows) => {
  const bodies = [];
  let body = [];
  let bytes = 0;
  const encoder = new TextEncoder();
  for (const row of rows) {
    const json = JSON.stringify(row);
    const size = encoder.encode(json).length + 1;
    if (body.length === BODY_ROWS || (body.length && bytes + size > BODY_BYTES)) {
      bodies.push(body);
      [body, bytes] = [[], 0];
    }
    body.push(json);
    bytes += size;
  }
  if (body.length) bodies.push(body);
  return bodies.map((each) => ({ count: each.length, json: `{"rows":[${each.join(",")}]}` }));
};
