"use strict";
(() => {
  const byId = (name) => document.getElementById(name);
  const make = (name, text, className) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };

  // Light and dark: the system's choice until the reader makes one.
  const root = document.documentElement;
  const theme = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  system.addEventListener("change", showTheme);
  theme.hidden = false;
  showTheme();

  // Sorting: by the values of the cells, never their texts; a missing value stays last; groups stay together.
  const valueOf = (cell) => {
    if ("number" in cell.dataset) return Number(cell.dataset.number);
    return "text" in cell.dataset ? cell.dataset.text : null;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en"));
  const sortRows = (rows, column, direction) => {
    const keyed = rows.map((row) => [valueOf(row.cells[column]), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return direction * compare(a, b);
    });
    return keyed.map(([, row]) => row);
  };
  const NEXT = { ascending: { none: "ascending", ascending: "descending", descending: "none" },
                 descending: { none: "descending", descending: "ascending", ascending: "none" } };
  for (const table of document.querySelectorAll("table.data")) {
    const original = [...table.tBodies].map((body) => [body, [...body.querySelectorAll("tr.row")]]);
    const heads = [...table.querySelectorAll("thead th[data-sortable]")];
    for (const head of heads) {
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      const first = head.classList.contains("right") ? "descending" : "ascending";
      button.addEventListener("click", () => {
        const order = NEXT[first][head.getAttribute("aria-sort")];
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", order);
        for (const [body, rows] of original) {
          const sorted = order === "none" ? rows : sortRows(rows, head.cellIndex, order === "ascending" ? 1 : -1);
          body.append(...sorted);
        }
      });
    }
  }

  // A table that fits needs no scrolling box of its own, so its head can stick to the window.
  const fit = () => {
    for (const box of document.querySelectorAll(".scroll")) {
      const fits = box.firstElementChild.scrollWidth <= box.clientWidth;
      box.classList.toggle("fits", fits);
      if (fits) box.removeAttribute("tabindex");
      else box.tabIndex = 0;
      fade(box);
    }
  };
  // One that does not fit fades where there is more of it.
  const fade = (box) => {
    box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    box.classList.toggle("more-below", box.scrollTop + box.clientHeight < box.scrollHeight - 2);
  };
  for (const box of document.querySelectorAll(".scroll")) box.addEventListener("scroll", () => fade(box), { passive: true });
  addEventListener("resize", fit);
  for (const each of document.querySelectorAll("details")) each.addEventListener("toggle", fit);
  fit();

  // Paper shows everything.
  const opened = new Set();
  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details:not([open])")) {
      opened.add(each);
      each.open = true;
    }
  });
  addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
    opened.clear();
  });

  // Rows answered wrong. Probabilities are thousandths; p and w hold a number for each row and method, row by row.
  if (!byId("explorer")) return;
  const PAGE = 50;
  const ANY = "any", EVERY = "every";
  const tasks = JSON.parse(byId("error-data").textContent);
  const choice = { task: byId("error-task"), method: byId("error-method"), order: byId("error-order"), every: byId("error-every") };
  let page = 0;

  const option = (value, text) => {
    const node = make("option", text);
    node.value = value;
    return node;
  };
  const fillMethods = () => {
    const names = tasks[choice.task.value].methods;
    choice.method.replaceChildren(option(ANY, "any method"), option(EVERY, "every method"), ...names.map((name, i) => option(i, name)));
  };
  const wrongAt = (task, row, method) => {
    const seeds = task.w[row * task.methods.length + method];
    return choice.every.checked ? seeds === task.seeds[method] : seeds > 0;
  };
  const selected = (task) => {
    const all = task.methods.map((_, index) => index);
    const chosen = choice.method.value;
    const looked = chosen === ANY || chosen === EVERY ? all : [Number(chosen)];
    const found = [];
    for (let row = 0; row < task.n.length; row += 1) {
      const wrong = looked.filter((method) => wrongAt(task, row, method));
      if (chosen === EVERY ? wrong.length < looked.length : !wrong.length) continue;
      found.push([Math.min(...wrong.map((method) => task.p[row * all.length + method])), row]);
    }
    const byRow = choice.order.value === "row";
    found.sort(([a, i], [b, j]) => (byRow ? task.n[i] - task.n[j] : a - b || i - j));
    return found.map(([, row]) => row);
  };
  const answerCell = (task, row, method) => {
    const at = row * task.methods.length + method;
    const cell = make("td", task.p[at] ? (task.p[at] / 1000).toFixed(3) : "<0.001", "right");
    const seeds = task.seeds[method], wrong = task.w[at];
    const dots = make("span", seeds > 6 ? `${wrong}/${seeds}` : "\u25cf".repeat(wrong) + "\u25cb".repeat(seeds - wrong));
    dots.className = wrong ? "dots some" : "dots";
    dots.setAttribute("aria-hidden", "true");
    cell.append(dots, make("span", ` wrong in ${wrong} of ${seeds} seeds`, "unseen"));
    if (String(method) === choice.method.value) cell.classList.add("chosen");
    return cell;
  };
  const rowOf = (task, row) => {
    const line = make("tr", undefined, "row");
    const head = make("th", String(task.n[row]), "left");
    head.scope = "row";
    line.append(head, make("td", task.labels[task.t[row]], "left"), ...task.methods.map((_, method) => answerCell(task, row, method)));
    if (task.x) {
      const cell = make("td", undefined, "text");
      for (const text of task.x[row]) cell.append(make("p", text));
      line.append(cell);
    }
    return line;
  };
  const headOf = (task) => {
    const line = make("tr");
    const titles = [["row", "left"], ["true label", "left"], ...task.methods.map((name) => [name, "right"])];
    if (task.x) titles.push(["text", "left"]);
    for (const [title, side] of titles) {
      const head = make("th", title, side);
      head.scope = "col";
      line.append(head);
    }
    return line;
  };
  const show = () => {
    const task = tasks[choice.task.value];
    const rows = selected(task);
    const table = byId("error-table");
    page = Math.max(0, Math.min(page, Math.ceil(rows.length / PAGE) - 1));
    const shown = rows.slice(page * PAGE, (page + 1) * PAGE);
    table.tHead.replaceChildren(headOf(task));
    table.tBodies[0].replaceChildren(...shown.map((row) => rowOf(task, row)));
    const count = rows.length.toLocaleString("en");
    byId("error-status").textContent = shown.length
      ? `Rows ${page * PAGE + 1} to ${page * PAGE + shown.length} of ${count}.`
      : "No row is like that.";
    byId("error-back").disabled = page === 0;
    byId("error-next").disabled = (page + 1) * PAGE >= rows.length;
    fit();
  };
  const turn = (step) => {
    page += step;
    show();
  };
  choice.task.addEventListener("change", fillMethods);
  for (const control of Object.values(choice)) {
    control.addEventListener("change", () => {
      page = 0;
      show();
    });
  }
  byId("error-back").addEventListener("click", () => turn(-1));
  byId("error-next").addEventListener("click", () => turn(1));
  byId("explorer").hidden = false;
  fillMethods();
  show();
})();
