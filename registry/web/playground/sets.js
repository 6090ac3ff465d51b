// The sets: their list, page by page, the search in it, and what is known of those that are chosen.
const PAGE_NAMES = 500; // listed in one call
const MOST_SHOWN = 200; // names in the list at a time
const MOST_CHOSEN = 24;

const byId = (name) => document.getElementById(name);
const make = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};
const counted = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

const notice = byId("notice");
const tell = (line) => {
  notice.textContent = line;
  notice.hidden = !line;
};
const tellTrouble = (error) => {
  if (error.name === "AbortError") return;
  if (error.status === 401) byId("access").open = true;
  tell(error instanceof Trouble ? error.line : String(error));
};

const sets = { listed: [], chosen: new Map(), changed: () => {} }; // chosen: name to { name, reference, known }
let listing = new AbortController();

const listSets = async () => {
  listing.abort();
  listing = new AbortController();
  const { signal } = listing;
  const found = [];
  let after = "";
  try {
    do {
      const query = new URLSearchParams({ after, limit: PAGE_NAMES });
      const page = await ask(`v1/adapters?${query}`, undefined, { signal, waits: tell });
      found.push(...page.adapters);
      sets.listed = found;
      if (after === "") tell("");
      showSets();
      if (after === "" && !sets.chosen.size) await choose(found.find((each) => !each.error), true);
      after = page.next;
    } while (after);
  } catch (error) {
    tellTrouble(error);
    if (error.name !== "AbortError") showSets(error.status);
  }
};

const isMatch = (each, words) => {
  const told = [each.name, each.task ?? "", ...each.labels].join(" ").toLowerCase();
  return words.every((word) => told.includes(word));
};

const showSets = (failed) => {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = sets.listed.filter((each) => isMatch(each, words));
  const focused = document.activeElement?.dataset?.name;
  byId("sets").replaceChildren(...matches.slice(0, MOST_SHOWN).map(setItem));
  if (focused) [...byId("sets").querySelectorAll("[data-name]")].find((each) => each.dataset.name === focused)?.focus();
  const all = counted(sets.listed.length, "set");
  const chosen = sets.chosen.size ? `, ${sets.chosen.size} chosen` : "";
  const cut = matches.length > MOST_SHOWN ? `; the first ${MOST_SHOWN} are shown` : "";
  const isUnknown = failed !== undefined && !sets.listed.length;
  byId("count").textContent = isUnknown ? "The sets are not known yet."
    : words.length ? `${matches.length.toLocaleString("en")} of ${all}${chosen}${cut}` : `${all}${chosen}${cut}`;
  const nothing = byId("nothing");
  nothing.hidden = sets.chosen.size > 0 || isUnknown;
  nothing.textContent = !sets.listed.length ? "The store has no sets yet. Train one, or bring the shipped ones: adapter-registry init --shipped"
    : "Choose a set, or several, to see their answers here.";
};

const setItem = (each) => {
  const box = make("input", { type: "checkbox", checked: sets.chosen.has(each.name), disabled: Boolean(each.error) });
  box.dataset.name = each.name;
  box.addEventListener("change", () => choose(each, box.checked));
  const labels = each.labels.length > 4 ? counted(each.labels.length, "label") : each.labels.join(", ");
  const task = each.task && each.task !== each.name ? each.task : "";
  const about = each.error ? make("small", { className: "broken" }, wordsOf(each.error))
    : make("small", {}, [task, labels].filter(Boolean).join(" · "));
  const item = make("li", {}, make("label", {}, box, make("b", {}, each.name), about));
  if (sets.chosen.has(each.name) && (each.versions.length > 1 || Object.keys(each.aliases).length)) item.append(versionChoice(each));
  return item;
};

const versionChoice = (each) => {
  const chosen = sets.chosen.get(each.name);
  const select = make("select", { ariaLabel: `Version of ${each.name}` });
  const newest = each.versions[each.versions.length - 1];
  select.append(new Option(`newest, now ${newest}`, each.name));
  for (const [alias, version] of Object.entries(each.aliases)) select.append(new Option(`@${alias}, now ${version}`, `${each.name}@${alias}`));
  for (const version of [...each.versions].reverse()) select.append(new Option(`version ${version}`, `${each.name}:${version}`));
  select.value = chosen.reference;
  select.addEventListener("change", () => know(each.name, select.value));
  return select;
};

const choose = async (each, isWanted) => {
  if (!each) return;
  if (!isWanted) sets.chosen.delete(each.name);
  else if (sets.chosen.size >= MOST_CHOSEN) tell(`At most ${MOST_CHOSEN} sets answer side by side.`);
  else {
    sets.chosen.set(each.name, { name: each.name, reference: each.name, known: null });
    await know(each.name, each.name);
    return;
  }
  showSets();
  sets.changed();
};

// Learns what the server tells of a chosen set: its labels, and whether it takes a second text.
const know = async (name, reference) => {
  const chosen = sets.chosen.get(name);
  chosen.reference = reference;
  try {
    const known = await ask(`v1/adapters/${encodeURIComponent(reference)}`, undefined, { waits: tell });
    if (sets.chosen.get(name) !== chosen || chosen.reference !== reference) return;
    chosen.known = known;
  } catch (error) {
    tellTrouble(error);
  }
  showSets();
  sets.changed();
};

const takesPairs = (chosen) => chosen.known !== null && chosen.known.pair !== false;
const chosenSets = () => [...sets.chosen.values()];
const rowOf = ({ reference, known }, text, pair) =>
  known?.pair || (known?.pair !== false && pair) ? { adapter: reference, text, pair } : { adapter: reference, text };
