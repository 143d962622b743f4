"use strict";

/* Words of a text coloured by the attention they receive, or by where one of them looks; sortable tables.
   Nothing leaves the page. Layers and heads count from 1; head 0 is the mean of a layer. */

const byId = (id) => document.getElementById(id);
const PANES = ["base", "tuned", "change"];
const HINT = "Point at a word to see where it looks, click to keep it. Keys: arrows, Enter to keep, Escape to let go.";

function element(tag, text, ...classes) {
  const node = document.createElement(tag);
  node.textContent = text;
  node.classList.add(...classes);
  return node;
}

const percent = (value) => value.toFixed(1);

function signed(value) {
  const text = percent(Math.abs(value));
  if (Number(text) === 0) return text;
  return (value > 0 ? "+" : "−") + text;
}

/* A change, and by how much it may be off. */
function moved(value, slack) {
  return Number(percent(slack)) === 0 ? signed(value) : `${signed(value)} ± ${percent(slack)}`;
}

/* Places that have a number, the largest first: by what is sure, then by what was kept. */
function ordered(sure, change) {
  const known = change.flatMap((value, unit) => (value === null ? [] : [unit]));
  const size = (values, unit) => Math.abs(values[unit]);
  return known.sort((a, b) => size(sure, b) - size(sure, a) || size(change, b) - size(change, a));
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

/* The square root opens the scale for the many small values: 0 … 9. */
function step(value, top) {
  return top > 0 ? Math.min(9, Math.ceil(9 * Math.sqrt(Math.abs(value) / top) - 0.5)) : 0;
}

/* The maps of a text: (model, map, row, column) → [attention in percent, how far off it may be], as stored: 16 levels of
   a square-root scale, one for words and one for the other units; levels of tuned models as differences from the base. */
async function unpack(passage) {
  const packed = Uint8Array.from(atob(passage.packed), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const words = passage.received[0][0].length;
  const units = words + passage.outside.length;
  const maps = passage.kept.length;
  const levels = bytes.subarray(4 * maps);
  const level = (place) => (levels[place >> 1] >> (4 * (place & 1))) & 15;
  return (model, map, row, column) => {
    const number = passage.kept.indexOf(map);
    const place = (number * units + row) * units + column;
    const found = model === 0 ? level(place) : (level(place) + level(place + model * maps * units * units)) & 15;
    const at = 4 * number + (column < words ? 0 : 2);
    const scale = (bytes[at] + 256 * bytes[at + 1]) / 65535;
    return [100 * (found / 15) ** 2 * scale, 100 * ((found + 0.25) / 225) * scale]; // half a level more is (found + ½)²
  };
}

class Viewer {
  constructor(content) {
    this.content = content;
    this.here = null; // the unit pointed at; units are the words, then what is no word
    this.pinned = null;
    this.maps = null;
    this.nodes = {}; // of each pane, one for each unit
    fill(byId("passage"), content.passages.map(({ id, label }, index) => [index, label ? `${id} · ${label}` : id]));
    fill(byId("model"), content.models.slice(1).map((name, index) => [index + 1, name]));
    byId("passage-label").hidden = content.passages.length === 1;
    byId("model-label").hidden = content.models.length === 2;
    this.listen();
    this.choosePassage();
  }

  listen() {
    byId("passage").addEventListener("change", () => this.choosePassage());
    byId("model").addEventListener("change", () => this.chooseModel());
    byId("layer").addEventListener("change", () => this.chooseLayer());
    byId("head").addEventListener("change", () => this.render());
    byId("changed-only").addEventListener("change", () => this.fillLayers());
    for (const pane of PANES) {
      const units = byId(`${pane}-units`);
      units.addEventListener("pointerover", (event) => this.point(event));
      units.addEventListener("pointerleave", () => this.leave());
      units.addEventListener("blur", () => this.leave());
      units.addEventListener("click", (event) => this.keep(event));
      units.addEventListener("keydown", (event) => this.press(event));
    }
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.release(); });
  }

  /* ---- what is chosen ---- */

  get model() { return Number(byId("model").value); }

  get map() {
    const [layer, head] = [byId("layer"), byId("head")].map((select) => Number(select.value));
    return this.passage.maps.findIndex((map) => map[0] === layer && map[1] === head);
  }

  /* The unit whose looking is shown, if its map is here. */
  get looking() {
    const source = this.pinned ?? this.here;
    return this.maps && this.passage.kept.includes(this.map) && !this.passage.silent.includes(source) ? source : null;
  }

  choosePassage() {
    this.passage = this.content.passages[byId("passage").value];
    this.names = [...this.passage.words.filter((_, index) => this.passage.isWord[index]), ...this.passage.outside];
    this.words = this.names.length - this.passage.outside.length;
    [this.maps, this.here, this.pinned] = [null, null, null];
    PANES.forEach((pane) => this.draw(pane));
    this.chooseModel();
    this.load(this.passage);
  }

  async load(passage) {
    if (passage.packed && "DecompressionStream" in window) {
      passage.attention ??= await unpack(passage);
      if (passage !== this.passage) return; // another text was chosen meanwhile
      this.maps = passage.attention;
    }
    byId("words").dataset.ready = passage.id;
    this.render();
  }

  chooseModel() {
    const { heads, tested } = this.content.changed[this.model - 1];
    this.changed = this.passage.maps.filter(([layer, head]) => heads.some((pair) => pair[0] === layer && pair[1] === head));
    const box = byId("changed-only");
    box.disabled = this.changed.length === 0;
    box.checked &&= !box.disabled;
    byId("changed-text").textContent = tested
      ? `changed heads only (${this.changed.length} with adjusted p < .05)`
      : `most changed heads only (${this.changed.length}; none has adjusted p < .05)`;
    this.fillLayers();
  }

  fillLayers() {
    const select = byId("layer");
    const before = select.value ? Number(select.value) : this.content.start;
    this.offered = byId("changed-only").checked ? this.changed : this.passage.maps;
    const layers = [...new Set(this.offered.map(([layer]) => layer))].sort((a, b) => a - b);
    fill(select, layers.map((layer) => [layer, layer]));
    const nearest = layers.reduce((a, b) => (Math.abs(b - before) < Math.abs(a - before) ? b : a));
    select.value = nearest;
    this.chooseLayer();
  }

  chooseLayer() {
    const select = byId("head");
    const before = Number(select.value);
    const heads = this.offered.filter(([layer]) => layer === Number(byId("layer").value)).map(([, head]) => head);
    heads.sort((a, b) => a - b);
    fill(select, heads.map((head) => [head, head === 0 ? "mean of heads" : head]));
    select.value = heads.includes(before) ? before : heads[0];
    this.render();
  }

  /* ---- pointing, keeping, letting go ---- */

  unit(event) {
    const node = event.target.closest("[data-unit]");
    return node ? Number(node.dataset.unit) : null;
  }

  point(event) {
    const unit = this.unit(event);
    if (unit === null || unit === this.here) return;
    this.here = unit;
    this.render();
  }

  leave() {
    this.here = null;
    this.render();
  }

  keep(event) {
    const unit = this.unit(event);
    if (unit === null) return;
    this.here = unit;
    this.pinned = this.pinned === unit ? null : unit;
    this.render();
  }

  release() {
    this.pinned = null;
    this.render();
  }

  press(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move !== undefined) {
      this.here = Math.min(this.names.length - 1, Math.max(0, (this.here ?? this.pinned ?? -1) + move));
    } else if (event.key === "Enter" || event.key === " ") {
      this.pinned = this.pinned === this.here ? null : this.here;
    } else {
      return;
    }
    event.preventDefault();
    this.render();
  }

  /* ---- numbers ---- */

  /* Percent of each unit in base and tuned, null where there is none: where a unit looks, or what words receive; and by
     how much their difference may be off. What words receive is kept to hundredths of a percent. */
  numbers() {
    const models = [0, this.model];
    if (this.looking !== null) {
      const stored = models.map((model) => this.names.map((_, unit) => this.maps(model, this.map, this.looking, unit)));
      const [base, tuned] = stored.map((pairs) => pairs.map(([value]) => value));
      return { base, tuned, slack: this.names.map((_, unit) => stored[0][unit][1] + stored[1][unit][1]) };
    }
    const [base, tuned] = models.map((model) => {
      const received = this.passage.received[model][this.map];
      return this.names.map((_, unit) => (unit < this.words && received[unit] !== null ? received[unit] / 100 : null));
    });
    return { base, tuned, slack: this.names.map(() => 0) };
  }

  /* ---- drawing ---- */

  draw(pane) {
    let unit = 0;
    const nodes = [];
    const span = (text, ...classes) => {
      const node = element("span", text, "w", ...classes);
      node.dataset.unit = unit++;
      nodes.push(node);
      return node;
    };
    const { words, isWord, marked, outside } = this.passage;
    const text = words.map((word, index) => {
      if (!isWord[index]) return document.createTextNode(word);
      return span(word, ...(marked[index] ? ["marked"] : []));
    });
    byId(`${pane}-text`).replaceChildren(...text);
    const others = outside.map((name) => {
      const node = span("", "other");
      node.append(element("bdi", name), element("b", ""));
      return node;
    });
    byId(`${pane}-outside`).replaceChildren(...others.flatMap((node) => [node, " "]));
    this.nodes[pane] = nodes;
  }

  render() {
    const { base, tuned, slack } = this.numbers();
    const change = base.map((value, unit) => (value === null || tuned[unit] === null ? null : tuned[unit] - value));
    // What may be the rounding of the maps is no change: it has no colour, and the rest goes before it.
    const sure = change.map((value, unit) => (value !== null && Math.abs(value) <= slack[unit] ? 0 : value));
    const shown = { base, tuned, change, sure, slack };
    // Special tokens often take most of a row; the scale is that of the words, and their numbers stand beside them.
    const top = Math.max(0, ...base.slice(0, this.words), ...tuned.slice(0, this.words));
    const most = Math.max(0, ...sure.slice(0, this.words).map(Math.abs));
    this.name(top, most);
    for (const pane of PANES) {
      const write = pane === "change" ? signed : percent;
      const colours = pane === "change" ? sure : shown[pane];
      colours.forEach((value, unit) => this.paint(this.nodes[pane][unit], unit, value, pane === "change" ? most : top));
      shown[pane].slice(this.words).forEach((value, index) => {
        this.nodes[pane][this.words + index].querySelector("b").textContent = value === null ? "" : ` ${write(value)}`;
      });
    }
    byId("readout").textContent = this.sentence(shown);
    byId("where").textContent = this.where();
    byId("note").textContent = this.note();
    byId("note").hidden = byId("note").textContent === "";
    this.sums();
    this.table(shown);
  }

  paint(node, unit, value, top) {
    const size = value === null ? 0 : step(value, top);
    const colour = `${value < 0 ? "b" : "a"}${size}`;
    [...node.classList].filter((name) => /^[ab]\d$/.test(name)).forEach((name) => node.classList.remove(name));
    node.classList.add(colour);
    node.classList.toggle("here", unit === (this.here ?? this.pinned));
    node.classList.toggle("pinned", unit === this.pinned);
  }

  name(top, most) {
    byId("base-name").textContent = this.content.models[0];
    byId("tuned-name").textContent = this.content.models[this.model];
    byId("change-name").textContent = "change: tuned − base";
    for (const pane of ["base", "tuned"]) {
      byId(`${pane}-low`).textContent = "0";
      byId(`${pane}-high`).textContent = `${percent(top)} %`;
    }
    byId("change-low").textContent = signed(-most);
    byId("change-high").textContent = `${signed(most)} points`;
  }

  sentence({ base, tuned, change, sure, slack }) {
    if (this.here === null && this.pinned === null) return HINT;
    const numbers = (unit) => (base[unit] === null || change[unit] === null
      ? "no attention measured"
      : `base ${percent(base[unit])} %, tuned ${percent(tuned[unit])} %, change ${moved(change[unit], slack[unit])} points`);
    const source = this.pinned ?? this.here;
    if (this.looking === null) return `“${this.names[source]}” receives: ${numbers(source)}.`;
    const pointed = this.pinned !== null && this.here !== null && this.here !== this.pinned;
    const [largest] = ordered(sure, change);
    const target = pointed ? this.here : largest;
    const how = pointed ? "looks at" : "changed most towards";
    return `“${this.names[source]}” ${how} “${this.names[target]}”: ${numbers(target)}.`;
  }

  /* On paper, where the controls are missing. */
  where() {
    const [layer, head] = this.passage.maps[this.map];
    const what = this.looking === null ? "what words receive" : `where “${this.names[this.looking]}” looks`;
    return `Text ${this.passage.id}, layer ${layer}, ${head === 0 ? "mean of heads" : `head ${head}`}: ${what}.`;
  }

  note() {
    if (!this.passage.stored) return "Where words look was not kept for this text.";
    if (!this.passage.kept.includes(this.map)) return "Where words look in this head is left out of the page for its size; attnlens.view shows it.";
    if (!("DecompressionStream" in window)) return "This browser cannot unpack where words look: only what they receive is shown.";
    return "";
  }

  sums() {
    const marked = this.passage.marked.filter((_, index) => this.passage.isWord[index]);
    const [base, tuned] = [0, this.model].map((model) =>
      this.passage.received[model][this.map].reduce((sum, value, word) => sum + (marked[word] ? value / 100 : 0), 0));
    byId("sums").textContent = marked.some(Boolean)
      ? `Marked words together: ${percent(base)} % of the ${this.content.causal ? "position-corrected " : ""}attention on words in base, ${percent(tuned)} % in tuned (${signed(tuned - base)} points).`
      : "No word of this text is marked.";
  }

  table({ base, tuned, change, sure, slack }) {
    const rows = ordered(sure, change).slice(0, 6).map((unit) => {
      const row = document.createElement("tr");
      const cell = element("td", "");
      cell.append(element("bdi", this.names[unit]));
      const numbers = [percent(base[unit]), percent(tuned[unit]), moved(change[unit], slack[unit])];
      row.append(cell, ...numbers.map((text) => element("td", text, "number")));
      return row;
    });
    byId("changed").tBodies[0].replaceChildren(...rows);
    byId("changed-what").textContent = this.looking === null
      ? "receives most more or less"
      : `where “${this.names[this.looking]}” looks more or less`;
  }
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
      const rows = [...table.tBodies[0].rows];
      const known = rows.filter((row) => key(row) !== "").sort(compare);
      const missing = rows.filter((row) => key(row) === ""); // no data is neither small nor large: last
      table.tBodies[0].append(...(descending ? known.reverse() : known), ...missing);
    });
  });
}

if (byId("passages")) new Viewer(JSON.parse(byId("passages").textContent));
document.querySelectorAll("table.sortable").forEach(sortable);
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
