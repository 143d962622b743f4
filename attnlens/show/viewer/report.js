"use strict";

/* The words of a text coloured by the attention they receive in base and tuned; sortable tables; nothing leaves the page. */

const byId = (id) => document.getElementById(id);

function element(tag, text, ...classes) {
  const node = document.createElement(tag);
  node.textContent = text;
  node.classList.add(...classes);
  return node;
}

const number = (hundredths) => (hundredths / 100).toFixed(1);

function signed(hundredths) {
  const text = number(Math.abs(hundredths));
  if (Number(text) === 0) return text;
  return (hundredths > 0 ? "+" : "−") + text;
}

function viewer(content) {
  const selects = { passage: byId("passage"), map: byId("map"), model: byId("model") };
  let cells = []; // the spans of both panes: cells[pane][word]
  let values = []; // hundredths of a percent: values[pane][word]
  let names = []; // the words themselves

  const mapName = ([layer, head]) => (head === 0 ? `layer ${layer}, mean of heads` : `layer ${layer}, head ${head}`);

  function fill(select, labels) {
    select.replaceChildren(...labels.map((label, index) => new Option(label, index)));
  }

  function draw(pane, top, passage) {
    let word = 0;
    cells[pane.index] = [];
    const nodes = passage.words.map((text, index) => {
      if (!passage.isWord[index]) return document.createTextNode(text);
      // The square root opens the scale for the many small values.
      const value = values[pane.index][word++];
      const step = value === null || top === 0 ? 0 : Math.ceil(9 * Math.sqrt(value / top) - 0.5);
      const node = element("span", text, "w", `a${step}`);
      if (passage.marked[index]) node.classList.add("marked");
      node.dataset.word = String(word - 1);
      cells[pane.index].push(node);
      return node;
    });
    byId(pane.text).replaceChildren(...nodes);
  }

  function show(word) {
    cells.flat().forEach((node) => node.classList.toggle("here", node.dataset.word === String(word)));
    const [base, tuned] = values.map((pane) => pane[word]);
    byId("readout").textContent = base === null || tuned === null
      ? `“${names[word]}”: no attention measured`
      : `“${names[word]}”: base ${number(base)} %, tuned ${number(tuned)} %, change ${signed(tuned - base)} points`;
  }

  function sums(passage) {
    const marked = passage.marked.filter((_, index) => passage.isWord[index]);
    const [base, tuned] = values.map((pane) => pane.reduce((sum, value, word) => sum + (marked[word] ? value : 0), 0));
    byId("sums").textContent = marked.some(Boolean)
      ? `Marked words together: ${number(base)} % of the attention on words in base, ${number(tuned)} % in tuned (${signed(tuned - base)} points).`
      : "No word of this text is marked.";
  }

  function changed() {
    const [base, tuned] = values;
    const order = base.map((_, word) => word).sort((a, b) => Math.abs(tuned[b] - base[b]) - Math.abs(tuned[a] - base[a]));
    const rows = order.slice(0, 6).map((word) => {
      const row = document.createElement("tr");
      const cell = element("td", "");
      cell.append(element("bdi", names[word]));
      const numbers = [number(base[word]), number(tuned[word]), signed(tuned[word] - base[word])];
      row.append(cell, ...numbers.map((text) => element("td", text, "number")));
      return row;
    });
    byId("changed").tBodies[0].replaceChildren(...rows);
  }

  function render() {
    const passage = content.passages[selects.passage.value];
    const model = 1 + Number(selects.model.value);
    values = [0, model].map((index) => passage.received[index][selects.map.value]);
    names = passage.words.filter((_, index) => passage.isWord[index]);
    const top = Math.max(0, ...values.flat());
    byId("base-name").textContent = content.models[0];
    byId("tuned-name").textContent = content.models[model];
    byId("top-of-scale").textContent = `${number(top)} %`;
    byId("readout").textContent = "Point at a word, or move through a text with the arrow keys.";
    draw({ index: 0, text: "base-text" }, top, passage);
    draw({ index: 1, text: "tuned-text" }, top, passage);
    sums(passage);
    changed();
  }

  function choosePassage() {
    // The maps differ from text to text only in principle; the choice is kept where it exists.
    const passage = content.passages[selects.passage.value];
    const before = selects.map.selectedOptions[0]?.textContent;
    fill(selects.map, passage.maps.map(mapName));
    const labels = passage.maps.map(mapName);
    const start = passage.maps.findIndex(([layer, head]) => layer === content.start && head === 0);
    const kept = labels.indexOf(before);
    selects.map.value = String(Math.max(0, kept >= 0 ? kept : start));
    render();
  }

  fill(selects.passage, content.passages.map(({ id, label }) => (label ? `${id} · ${label}` : id)));
  fill(selects.model, content.models.slice(1));
  byId("model-label").hidden = content.models.length === 2;
  selects.passage.addEventListener("change", choosePassage);
  selects.map.addEventListener("change", render);
  selects.model.addEventListener("change", render);
  for (const pane of ["base-text", "tuned-text"]) {
    byId(pane).addEventListener("pointerover", (event) => {
      if (event.target.dataset.word !== undefined) show(Number(event.target.dataset.word));
    });
    byId(pane).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const here = cells[0].findIndex((node) => node.classList.contains("here"));
      show(Math.min(names.length - 1, Math.max(0, here + step)));
    });
  }
  choosePassage();
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        const difference = Number(x) - Number(y);
        return Number.isNaN(difference) ? x.localeCompare(y) : difference;
      };
      const rows = [...table.tBodies[0].rows].sort(compare);
      table.tBodies[0].append(...(descending ? rows.reverse() : rows));
    });
  });
}

if (byId("passages")) viewer(JSON.parse(byId("passages").textContent));
document.querySelectorAll("table.sortable").forEach(sortable);
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
