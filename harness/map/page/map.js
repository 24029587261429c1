// The table of stacks. Everything of the table's file is set as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const view = { rows: "", cols: "", clause: "", route: "", method: "", launch: "", run: "", open: "", a: "", b: "" };
  const NAMES = Object.keys(view);
  const ORDER = ["fails", "undecided", "not judged", "holds"];

  function make(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }
  // A table that scrolls by itself on a narrow screen.
  const wide = (head, rows) => make("div", { class: "wide", tabindex: "0" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  const version = (cell, name) => (Object.hasOwn(cell.stack, name) ? cell.stack[name] : "-");
  const numbers = (text) => text.split(/[^0-9]+/).filter(Boolean).map(Number);
  function newer(one, other) {
    const [a, b] = [numbers(one), numbers(other)];
    for (let i = 0; i < Math.max(a.length, b.length); i++) if ((a[i] || 0) !== (b[i] || 0)) return (b[i] || 0) - (a[i] || 0);
    return one < other ? -1 : 1;
  }
  const says = (verdict) => (Object.hasOwn(data.holds, verdict) ? data.holds[verdict] : "undecided");
  const limited = () => view.route || view.method || view.launch;
  const chosen = () => data.clauses.filter((id) => !view.clause || id === view.clause || id.startsWith(`${view.clause}-`));

  // What a stack says of a clause, of the kinds of runs that are chosen. "" if it has no such case.
  function ofClause(cell, id) {
    const entry = Object.hasOwn(cell.clauses, id) ? cell.clauses[id] : null;
    if (!entry) return "";
    if (!limited()) return says(entry.verdict);
    if (entry.verdict === "conflict") return "undecided";
    const found = entry.cases.filter(
      ([route, method, launch]) =>
        (!view.route || route === view.route) && (!view.method || method === view.method) && (!view.launch || launch === view.launch),
    ).map((one) => says(one[3]));
    return ["fails", "undecided", "holds", "not judged"].find((one) => found.includes(one)) || "";
  }
  function ofCell(cell) {
    if (cell.state !== "judged") return "unmade";
    // Its packages refuse each other, perhaps in what was not judged (results_table.of_cell).
    if (cell.requires.length && !view.clause && !limited()) return "fails";
    const found = new Set(chosen().map((id) => ofClause(cell, id)).filter(Boolean));
    if (found.has("holds")) found.delete("not judged");
    const state = ORDER.find((one) => found.has(one)) || "not judged";
    const failing = chosen().filter((id) => ofClause(cell, id) === "fails");
    return state === "fails" && !view.clause && failing.every((id) => cell.clauses[id].verdict === "known_defect") ? "known defects" : state;
  }
  function causes(cell) {
    const failing = new Set(chosen().filter((id) => ofClause(cell, id) === "fails"));
    return cell.causes.filter((cause) => cause.clauses.some((id) => failing.has(id)));
  }
  const cells = () => data.cells.filter((cell) => cell.run === view.run);
  const id = (cell) => `${cell.requirements} ${cell.device} ${cell.machine} ${cell.lock_key}`;

  // ---- the address ----

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (!NAMES.some((name) => given.has(name)) && location.hash) return false;
    const usual = { rows: data.packages[0] || "", cols: data.packages[1] || data.packages[0] || "", run: runs()[0] || "" };
    for (const name of NAMES) view[name] = given.get(name) || usual[name] || "";
    for (const name of ["rows", "cols"]) if (!data.packages.includes(view[name])) view[name] = usual[name];
    if (!runs().includes(view.run)) view.run = usual.run;
    return true;
  }
  function write() {
    const kept = new URLSearchParams();
    for (const name of NAMES) if (view[name]) kept.set(name, view[name]);
    history.replaceState(null, "", `#${kept}`);
  }
  const runs = () => {
    const found = new Map();
    for (const cell of data.cells) found.set(cell.run, (found.get(cell.run) || 0) + 1);
    return [...found].sort((a, b) => b[1] - a[1]).map(([name]) => name);
  };

  // ---- the views ----

  function options(name, entries) {
    at(name).replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
    at(name).value = view[name];
    if (at(name).selectedIndex < 0) { at(name).selectedIndex = 0; view[name] = at(name).value; }
  }
  function fill() {
    for (const name of ["rows", "cols"]) options(name, data.packages.map((one) => [one, one]));
    const chapters = [...new Set(data.clauses.map((one) => one.split("-")[0]))];
    options("clause", [["", "all"], ...chapters.map((one) => [one, `chapter ${one}`]), ...data.clauses.map((one) => [one, one])]);
    const kinds = [new Set(), new Set(), new Set()];
    for (const cell of data.cells)
      for (const entry of Object.values(cell.clauses)) for (const one of entry.cases || []) kinds.forEach((kind, i) => one[i] && kind.add(one[i]));
    ["route", "method", "launch"].forEach((name, i) => options(name, [["", "all"], ...[...kinds[i]].sort().map((one) => [one, one])]));
    options("run", runs().map((one) => [one, one]));
    const named = cells().map((cell) => [id(cell), `${cell.requirements} (${cell.device}, ${cell.date.slice(0, 10)})`]);
    for (const name of ["a", "b"]) options(name, [["", "choose"], ...named]);
  }

  function grid() {
    const releases = (name) => [...new Set(cells().map((cell) => version(cell, name)))].sort(newer);
    const [down, across] = [releases(view.rows), releases(view.cols)];
    const head = make("tr", {}, make("th", {}, `${view.rows} \\ ${view.cols}`),
      ...across.map((one) => make("th", { scope: "col" }, make("span", {}, one))));
    const body = down.map((one) => make("tr", {}, make("th", { scope: "row" }, one), ...across.map((other) => square(one, other))));
    at("table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
    at("table").hidden = false;
    const states = new Map();
    for (const cell of cells()) states.set(ofCell(cell), (states.get(ofCell(cell)) || 0) + 1);
    const words = [...states].map(([name, count]) => `${count} ${name === "unmade" ? "cannot be made" : name}`);
    at("count").textContent = `${cells().length} stacks: ${words.join(", ")}`;
  }
  const inside = (row, col) => cells().filter((cell) => version(cell, view.rows) === row && version(cell, view.cols) === col);

  function square(row, col) {
    const found = inside(row, col);
    if (!found.length) return make("td", {});
    const states = new Set(found.map(ofCell));
    const one = states.size === 1 ? [...states][0] : "mixed";
    const shade = { holds: "holds", fails: "fails", "known defects": "known", unmade: "unmade", "not judged": "none", undecided: "undecided" }[one] || "mixed";
    const most = Math.max(...found.map((cell) => causes(cell).length));
    const text = { unmade: "\u00d7", "not judged": "\u2013" }[one] || String(most);
    const key = `${row}|${col}`;
    const label = `${view.rows} ${row}, ${view.cols} ${col}: ${one}, ${found.length} stacks, ${most} causes`;
    const button = make("button", { type: "button", class: shade, "aria-label": label, title: label, "aria-pressed": String(view.open === key) }, text);
    button.addEventListener("click", () => { view.open = view.open === key ? "" : key; show(); if (view.open) at("cell").focus(); });
    return make("td", {}, button);
  }

  function detail() {
    const [row, col] = view.open.split("|");
    const found = view.open ? inside(row, col) : [];
    at("detail").replaceChildren(...(found.length ? found.map(stack) : [make("p", {}, "Choose a cell of the table.")]));
  }
  function stack(cell) {
    const part = make("div", { class: "stack" }, make("h3", {}, cell.requirements));
    const all = Object.entries(cell.stack).map(([name, one]) => `${name} ${one}`).join(", ");
    const days = Object.values(cell.clauses).map((entry) => entry.date.slice(0, 10)).sort();
    const when = days.length && days[0] !== cell.date.slice(0, 10) ? `; its oldest verdict is of ${days[0]}` : "";
    part.append(make("p", {}, `${ofCell(cell)}. ${all}. Python ${cell.python}, ${cell.machine}, ${cell.cores} cores, ${cell.date}${when}.`));
    if (cell.sentence) part.append(make("p", {}, `${cell.state}: ${cell.sentence}`));
    for (const one of cell.requires) part.append(make("p", {}, `requires: ${one}`));
    const list = make("ul", {});
    for (const cause of causes(cell)) list.append(make("li", {}, `${cause.clauses.join(", ")}: ${cause.sentence} (${cause.cases} ${cause.cases === 1 ? "case" : "cases"})`));
    if (list.children.length) part.append(make("h4", {}, "Causes"), list);
    const rows = chosen().filter((one) => Object.hasOwn(cell.clauses, one)).map((one) => {
      const entry = cell.clauses[one];
      return make("tr", {}, make("td", { title: data.about[one] || "" }, one), make("td", {}, ofClause(cell, one) || "no such case"),
        make("td", {}, entry.verdict.replaceAll("_", " ")), make("td", {}, entry.seen || ""), make("td", {}, entry.date.slice(0, 10)));
    });
    const head = make("tr", {}, ...["clause", "says", "verdict", "seen", "judged"].map((one) => make("th", { scope: "col" }, one)));
    if (rows.length) part.append(wide(head, rows));
    const failing = chosen().filter((one) => ofClause(cell, one) === "fails").slice(0, 3);
    const words = `peft-harness check --with "${cell.requirements}"${failing.map((one) => ` --clause ${one}`).join("")}`;
    part.append(make("div", { class: "command" }, make("code", {}, words)));
    return part;
  }

  function difference() {
    const [one, other] = ["a", "b"].map((name) => cells().find((cell) => id(cell) === view[name]));
    if (!one || !other) return at("difference").replaceChildren();
    const moved = data.packages.filter((name) => version(one, name) !== version(other, name));
    const rows = chosen()
      .map((clause) => [clause, ofClause(one, clause) || "not judged", ofClause(other, clause) || "not judged"])
      .filter(([, was, now]) => was !== now)
      .map(([clause, was, now]) => {
        const entry = now === "fails" ? other.clauses[clause] : one.clauses[clause];
        return make("tr", {}, ...[clause, was, now, (entry && entry.seen) || ""].map((word) => make("td", {}, word)));
      });
    const head = make("tr", {}, ...["clause", "one", "other", "seen"].map((word) => make("th", { scope: "col" }, word)));
    const words = moved.map((name) => `${name} ${version(one, name)} \u2192 ${version(other, name)}`).join(", ");
    at("difference").replaceChildren(
      make("p", {}, `${words || "the same releases"}. ${rows.length} of ${chosen().length} clauses differ.`),
      ...(rows.length ? [wide(head, rows)] : []),
    );
  }

  function show() {
    fill();
    grid();
    detail();
    difference();
    write();
  }
  for (const name of ["rows", "cols", "clause", "route", "method", "launch", "run", "a", "b"])
    at(name).addEventListener("change", () => {
      view[name] = at(name).value;
      if (["rows", "cols", "run"].includes(name)) view.open = "";
      show();
    });
  window.addEventListener("hashchange", () => { if (read()) show(); });
  if (!read()) { history.replaceState(null, "", location.pathname + location.search); read(); }
  at("views").hidden = at("two").hidden = false;
  if (data.cells.length) show();
})();
