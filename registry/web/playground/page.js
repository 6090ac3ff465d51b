// The page: what its controls do.
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const showTheme = () => byId("theme").setAttribute("aria-pressed", String(isDark()));
byId("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
system.addEventListener("change", showTheme);
showTheme();

sets.changed = () => {
  showCards();
  forgetJob();
  answerNow();
};
byId("search").addEventListener("input", () => showSets());
byId("key").addEventListener("change", () => {
  const key = byId("key").value.trim();
  if (/[^\x21-\x7e]/.test(key)) return tell("A key has letters, digits and signs of ASCII only.");
  access.key = key;
  const unknown = chosenSets().filter((each) => !each.known);
  return Promise.all([listSets(), ...unknown.map((each) => know(each.name, each.reference))]).then(answerNow);
});

for (const name of ["text", "pair"]) byId(name).addEventListener("input", answerSoon);
byId("send").addEventListener("click", answerNow);
const isMac = /mac|iphone|ipad/i.test(navigator.platform);
if (isMac) byId("hint").textContent = "\u2318 Enter";
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  answerNow();
});

byId("file").addEventListener("change", () => {
  const [file] = byId("file").files;
  if (file) openFile(file);
  byId("file").value = ""; // the same file can be chosen again
});
let inside = 0;
const isFile = (event) => event.dataTransfer?.types.includes("Files");
const drag = (name, depth) => document.addEventListener(name, (event) => {
  if (!isFile(event)) return;
  event.preventDefault();
  inside = depth(inside);
  document.body.classList.toggle("dragging", inside > 0);
});
drag("dragenter", (depth) => depth + 1);
drag("dragleave", (depth) => Math.max(0, depth - 1));
drag("dragover", (depth) => depth);
drag("drop", () => 0);
document.addEventListener("drop", (event) => {
  if (isFile(event) && event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
});
for (const name of ["column", "pair-column"]) byId(name).addEventListener("change", forgetJob);
byId("run").addEventListener("click", runFile);
byId("stop").addEventListener("click", () => job.control.abort());
byId("save").addEventListener("click", saveFile);

// The clipboard is there for pages of this machine or of TLS; elsewhere the text is selected and copied as by hand.
const copy = async (node) => {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    return document.execCommand("copy");
  }
};
for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const what = button.dataset.copies === "curl" ? "The call as curl" : "The call as Python";
    byId("copied").textContent = (await copy(byId(button.dataset.copies))) ? `${what} is copied.` : `${what} is selected: copy it by hand.`;
  });
}

showCalls([]);
listSets();
