// The table that can be filtered. Everything of the report is set as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const FIRST = 300; // rows that are shown at once
  const LACKS = "\u0000lacks";
  const at = (id) => document.getElementById(id);
  const [OPEN, ALL] = ["open", "all"];
  const order = ["bad", "unsure", "known", "quiet", "good"];

  // ---- small helpers ----

  function make(tag, attributes, ...children) {
    const svg = ["svg", "path", "line", "circle", "text"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  const tone = (verdict) => (Object.hasOwn(data.tones, verdict) ? data.tones[verdict] : "quiet");
  const about = (id) => (Object.hasOwn(data.about, id) ? data.about[id] : {});
  const words = (verdict) => verdict.replaceAll("_", " ");
  const count = (number) => number.toLocaleString("en");
  const last = (list) => list[list.length - 1];

  // A row's verdict in words. With two sides it names both, if they differ.
  function verdictOf(row) {
    const [was, now] = [row.verdicts[0], last(row.verdicts)];
    if (row.verdicts.length < 2 || was === now) return now;
    if (!was) return now;
    return now ? `${was} \u2192 ${now}` : `${was} \u2192 not there`;
  }

  const rows = data.rows.map(([id, scenario, verdicts, values, spec, cause, command]) => {
    const row = { id, scenario, verdicts, values, spec, cause, command };
    row.status = verdictOf(row);
    row.tone = tone(last(verdicts) || verdicts[0]);
    const evidence = data.values[last(values)] || data.values[values[0]] || {};
    row.seen = headline(evidence, row);
    row.key = `${id}/${scenario}`;
    return row;
  });

  function headline(evidence, row) {
    if (data.noun === "mutant") return row.scenario || evidence.reason || "";
    const seen = Array.isArray(evidence.seen) ? evidence.seen : [];
    return String(seen[0] || evidence.reason || "").split("\n")[0];
  }

  function hay(row) {
    if (row.hay === undefined)
      row.hay = [row.id, row.scenario, row.status, words(row.status), row.seen, about(row.id).statement || ""].join("\n").toLowerCase();
    return row.hay;
  }

  // ---- the filter, which the page's address keeps ----

  const filter = { text: "", status: OPEN, cause: "", open: "" };
  const isOpen = (row) => row.tone === "bad" || row.tone === "unsure";

  function passes(row) {
    if (filter.status === OPEN ? !isOpen(row) : filter.status !== ALL && row.status !== filter.status) return false;
    if (filter.cause && String(row.cause) !== filter.cause) return false;
    return filter.text.toLowerCase().split(/\s+/).every((word) => hay(row).includes(word));
  }

  function options(select, entries) {
    select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  }

  function fillFilter() {
    const found = new Map();
    for (const row of rows) found.set(row.status, (found.get(row.status) || 0) + 1);
    const tones = new Map(rows.map((row) => [row.status, row.tone]));
    const statuses = [...found].sort((a, b) => order.indexOf(tones.get(a[0])) - order.indexOf(tones.get(b[0])) || b[1] - a[1]);
    const open = rows.filter(isOpen).length;
    options(at("status"), [
      [OPEN, `what does not hold (${count(open)})`],
      [ALL, `all (${count(rows.length)})`],
      ...statuses.map(([status, number]) => [status, `${words(status)} (${count(number)})`]),
    ]);
    const causes = new Map();
    for (const row of rows) if (row.cause) causes.set(row.cause, (causes.get(row.cause) || 0) + 1);
    const named = [...causes].sort((a, b) => a[0] - b[0]);
    options(at("cause"), [["", "any"], ...named.map(([number, size]) => [String(number), `${number} (${count(size)})`])]);
    at("cause-label").hidden = !causes.size;
    if (!open) filter.status = ALL;
    return open;
  }

  function readAddress(open) {
    const given = new URLSearchParams(location.hash.slice(1));
    const known = ["text", "status", "cause", "open"].some((name) => given.has(name));
    if (!known) return false;
    filter.text = given.get("text") || "";
    filter.status = given.get("status") || (open ? OPEN : ALL);
    filter.cause = given.get("cause") || "";
    filter.open = given.get("open") || "";
    if (![...at("status").options].some((one) => one.value === filter.status)) filter.status = ALL;
    return true;
  }

  function writeAddress() {
    const kept = new URLSearchParams();
    for (const [name, value] of Object.entries(filter)) if (value) kept.set(name, value);
    history.replaceState(null, "", `#${kept}`);
  }

  // ---- the rows ----

  function element(row) {
    if (row.element) return row.element;
    const button = make("button", { type: "button", class: "open", "aria-expanded": "false" }, make("span", { class: "id" }, row.id));
    if (row.scenario && data.noun !== "mutant") button.append(" ", make("span", {}, row.scenario));
    button.addEventListener("click", () => toggle(row, true));
    row.button = button;
    row.element = make(
      "tr",
      { role: "row" },
      make("td", { role: "cell" }, button),
      make("td", { role: "cell", class: `verdict ${row.tone}` }, words(row.status)),
      make("td", { role: "cell" }, row.seen),
    );
    return row.element;
  }

  function toggle(row, keep) {
    const opens = row.button.getAttribute("aria-expanded") !== "true";
    row.button.setAttribute("aria-expanded", String(opens));
    if (opens) {
      row.detail ||= make("tr", { class: "detail", role: "row" }, make("td", { role: "cell", colspan: "3" }, ...details(row)));
      row.element.after(row.detail);
    } else row.detail.remove();
    if (keep) {
      filter.open = opens ? row.key : "";
      writeAddress();
    }
  }

  let limit = FIRST;

  function show() {
    const chosen = rows.filter(passes);
    const shown = chosen.slice(0, limit);
    at("body").replaceChildren(
      ...shown.flatMap((row) => [element(row), ...(row.button.getAttribute("aria-expanded") === "true" ? [row.detail] : [])]),
    );
    const rest = chosen.length - shown.length;
    const noun = data.noun === "mutant" ? "mutants" : "cases";
    at("count").textContent = `${count(chosen.length)} of ${count(rows.length)} ${noun}${rest ? `; the first ${count(shown.length)} are shown` : ""}`;
    at("more").hidden = !rest;
    at("more").textContent = `Show the other ${count(rest)}`;
    const opened = filter.open && shown.find((row) => row.key === filter.open);
    if (opened && opened.button.getAttribute("aria-expanded") !== "true") toggle(opened, false);
    return opened;
  }

  function apply(open) {
    limit = FIRST;
    at("text").value = filter.text;
    at("status").value = filter.status;
    at("cause").value = filter.cause;
    return show(open);
  }

  // ---- what an opened row shows ----

  function details(row) {
    const parts = [];
    const { statement, source } = about(row.id);
    if (statement) parts.push(make("p", {}, statement));
    if (source) parts.push(make("p", { class: "quiet" }, data.noun === "mutant" ? "Thread: " : "Upstream: ", linked(source)));
    if (row.cause) parts.push(make("p", {}, make("a", { href: `#cause=${row.cause}&status=all` }, `All cases of cause ${row.cause}`)));
    const sides = make("div", { class: "sides" });
    row.values.forEach((value, side) => {
      const name = data.sides.length > 1 ? `${data.sides[side]}: ${words(row.verdicts[side] || "not run")}` : "";
      const says = value < 0 ? "nothing was noted" : side && value === row.values[0] ? "the same as on the other stack" : "";
      const quiet = data.sides.length > 1 && row.verdicts[side] ? says : "";
      sides.append(make("div", {}, name ? make("h3", {}, name) : null, ...(quiet ? [make("p", { class: "quiet" }, quiet)] : evidence(data.values[value]))));
    });
    parts.push(sides);
    const commands = [row.command, repeat(row)].filter((command) => command);
    if (commands.length) parts.push(make("h3", {}, "Repeat"), ...commands.map(copyable));
    if (row.spec >= 0) parts.push(...specParts(row));
    return parts;
  }

  function evidence(found) {
    if (!found || typeof found !== "object") return [];
    const parts = [];
    const seen = Array.isArray(found.seen) ? found.seen : [];
    if (found.expected) parts.push(make("h4", {}, "Expected"), make("p", {}, String(found.expected)));
    if (seen.length) parts.push(make("h4", {}, "Seen"), make("ul", {}, ...seen.map((one) => make("li", {}, asText(one)))));
    if (found.reason) parts.push(make("h4", {}, "Reason"), make("p", {}, asText(found.reason)));
    if (found.link) parts.push(make("p", {}, "Thread: ", linked(String(found.link))));
    if (found.curves && found.curves.steps) parts.push(make("h4", {}, "By step"), ...plots(found.curves));
    const facts = Object.entries(found).filter(([name]) => !["expected", "seen", "reason", "link", "curves"].includes(name));
    if (facts.length) {
      const list = make("dl", { class: "facts" });
      for (const [name, value] of facts) list.append(make("dt", {}, words(name)), make("dd", {}, asText(value)));
      parts.push(make("h4", {}, "Measured"), list);
    }
    return parts;
  }

  const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 1));

  // A link only for an address of the web. Anything else stays text.
  function linked(text) {
    let address = null;
    try {
      address = new URL(text);
    } catch {
      return text;
    }
    if (!["https:", "http:"].includes(address.protocol)) return text;
    return make("a", { href: address.href, rel: "noopener noreferrer" }, text);
  }

  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

  // pytest takes such words only behind -k.
  function repeat(row) {
    if (!data.check) return "";
    const scenario = row.scenario.replace(/\/shimmed$/, "");
    const one = /^[\w:+\-.[\]\\/]+$/.test(scenario) ? ` -- -k ${quoted(scenario)}` : "";
    return `${data.check} --clause ${quoted(row.id)}${one}`;
  }

  function copyable(command) {
    return make("div", { class: "command" }, make("code", {}, command), " ", make("button", { type: "button", class: "copy" }, "Copy"));
  }

  function specParts(row) {
    const part = data.specs[row.spec];
    const box = make("details", {}, make("summary", {}, "The run as a RunSpec"));
    box.addEventListener("toggle", () => {
      if (box.childElementCount > 1) return;
      const text = JSON.stringify(joined(data.usual, part), null, 1);
      box.append(
        make("p", {}, "Saved as run.json, ", make("code", {}, "peft-harness judge run.json"), " judges it by every clause that applies to any run."),
        make("div", { class: "command" }, make("pre", {}, make("code", {}, text)), make("button", { type: "button", class: "copy" }, "Copy")),
      );
    });
    const differs = lines(part, "");
    const says = differs.length ? differs.join("; ") : "the most frequent run of this report";
    return [make("h3", {}, "Run"), make("p", {}, differs.length ? `Beside the most frequent run of this report: ${says}` : says), box];
  }

  function lines(part, before) {
    return Object.entries(part).flatMap(([name, value]) => {
      if (name === LACKS) return value.map((one) => `no ${before}${one}`);
      const nested = value && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length;
      return nested ? lines(value, `${before}${name}.`) : [`${before}${name} = ${JSON.stringify(value)}`];
    });
  }

  function joined(usual, part) {
    const whole = {};
    const lacks = part[LACKS] || [];
    for (const [name, value] of Object.entries(usual || {})) if (!lacks.includes(name)) whole[name] = value;
    for (const [name, value] of Object.entries(part)) {
      if (name === LACKS) continue;
      const was = whole[name];
      const nested = [value, was].every((one) => one && typeof one === "object" && !Array.isArray(one));
      Object.defineProperty(whole, name, { value: nested ? joined(was, value) : value, enumerable: true, writable: true, configurable: true });
    }
    return whole;
  }

  // ---- plots ----

  const short = (value) => (value === null ? "-" : Number(value.toPrecision(5)).toString());

  function plots(curves) {
    const [one, other] = curves.of;
    const figures = [
      plot("Loss", curves.steps, [[one, curves.loss[0]], [other, curves.loss[1]]]),
      plot("Gradient norm", curves.steps, [[one, curves.grad_norm[0]], [other, curves.grad_norm[1]]]),
      plot("Largest difference of a tensor's gradient", curves.steps, Object.entries(curves.tensors || {}), true),
    ].filter((figure) => figure);
    return [make("div", { class: "plots" }, ...figures), numbersTable(curves)];
  }

  function plot(title, steps, series, logarithmic) {
    const usable = (value) => value !== null && (!logarithmic || value > 0);
    const values = series.flatMap(([, list]) => list).filter(usable);
    if (!values.length) return null;
    const scale = (value) => (logarithmic ? Math.log10(value) : value);
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) [low, high] = [Math.min(low, scale(value)), Math.max(high, scale(value))];
    if (high - low < 1e-12) [low, high] = [low - (Math.abs(low) || 1) * 0.05, high + (Math.abs(high) || 1) * 0.05];
    const [width, height, left, bottom, top] = [340, 190, 62, 26, 10];
    const [first, end] = [steps[0], last(steps)];
    const x = (step) => left + ((step - first) / (end - first || 1)) * (width - left - 12);
    const y = (value) => top + (1 - (scale(value) - low) / (high - low)) * (height - top - bottom);
    const says = `${title} by step: ${series.map(([name, list]) => `${name} ${list.map(short).join(", ")}`).join("; ")}`;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": says.slice(0, 600) });
    for (const share of [0, 0.5, 1]) {
      const level = low + share * (high - low);
      const value = logarithmic ? 10 ** level : level;
      svg.append(make("line", { class: "grid", x1: left, x2: width - 12, y1: y(value), y2: y(value) }));
      svg.append(make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, Number(value.toPrecision(3)).toString()));
    }
    svg.append(make("text", { x: left, y: height - 8 }, `step ${first}`), make("text", { x: width - 12, y: height - 8, "text-anchor": "end" }, `step ${end}`));
    series.slice(0, 5).forEach(([, list], number) => {
      let path = "";
      list.forEach((value, index) => {
        if (!usable(value)) return;
        path += `${index && usable(list[index - 1]) ? "L" : "M"}${x(steps[index]).toFixed(1)} ${y(value).toFixed(1)}`;
        svg.append(make("circle", { class: `s${number}`, cx: x(steps[index]).toFixed(1), cy: y(value).toFixed(1), r: number === 1 ? 4.5 : 2.5 }));
      });
      svg.append(make("path", { class: `s${number}`, d: path }));
    });
    const key = make("ul", { class: "key" });
    series.slice(0, 5).forEach(([name], number) => {
      const sample = make("svg", { width: 26, height: 10, viewBox: "0 0 26 10", "aria-hidden": "true" }, make("line", { class: `s${number}`, x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 2 }));
      key.append(make("li", {}, sample, name));
    });
    return make("figure", {}, make("figcaption", {}, logarithmic ? `${title} (logarithmic)` : title), svg, key);
  }

  function numbersTable(curves) {
    const [one, other] = curves.of;
    const columns = [
      [`loss, ${one}`, curves.loss[0]], [`loss, ${other}`, curves.loss[1]],
      [`gradient norm, ${one}`, curves.grad_norm[0]], [`gradient norm, ${other}`, curves.grad_norm[1]],
      ...Object.entries(curves.tensors || {}),
    ];
    const head = make("tr", {}, make("th", { scope: "col" }, "step"), ...columns.map(([name]) => make("th", { scope: "col" }, name)));
    const body = curves.steps.map((step, index) =>
      make("tr", {}, make("th", { scope: "row" }, String(step)), ...columns.map(([, list]) => make("td", {}, short(list[index])))));
    const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
    const box = make("div", { class: "wide", role: "region", tabindex: "0", "aria-label": "The numbers by step" }, table);
    return make("details", {}, make("summary", {}, "The same as numbers"), box);
  }

  // ---- events ----

  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    const text = code.textContent;
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Some browsers have no clipboard for a page that was opened as a file.
      getSelection().selectAllChildren(code);
      done = document.execCommand("copy");
    }
    at("said").textContent = done ? "Copied" : "Selected: copy it with the keyboard";
    button.textContent = done ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; at("said").textContent = ""; }, 2500);
  }

  document.documentElement.classList.add("scripted");
  at("filter").hidden = at("cases").hidden = false;
  const open = fillFilter();
  const changed = () => { filter.open = ""; limit = FIRST; writeAddress(); show(); };
  at("filter").addEventListener("submit", (event) => event.preventDefault());
  at("text").addEventListener("input", () => { filter.text = at("text").value; changed(); });
  at("status").addEventListener("change", () => { filter.status = at("status").value; changed(); });
  at("cause").addEventListener("change", () => { filter.cause = at("cause").value; changed(); });
  at("more").addEventListener("click", () => {
    const before = limit;
    limit = Infinity;
    show();
    rows.filter(passes)[before].button.focus();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (button) copy(button);
  });
  addEventListener("hashchange", () => {
    if (!readAddress(open)) return;
    const opened = apply();
    (opened ? opened.button : at("rows")).focus();
    (opened ? opened.element : at("rows")).scrollIntoView();
  });
  for (const box of document.querySelectorAll("details.curves"))
    box.addEventListener("toggle", () => {
      if (box.childElementCount < 2) box.append(...plots(data.curves[Number(box.dataset.curves)]));
    });
  const opened = (readAddress(open), apply());
  if (opened) opened.element.scrollIntoView();
})();
