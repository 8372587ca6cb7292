"use strict";
// Draws the page from the numbers in it. Every name that comes from a table is put in as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MAPS = [
    ["z", "update", "update gate z", "0 writes anew", "1 keeps"],
    ["r", "reset", "reset gate r", "0 ignores h", "1 sees it"],
    ["n", "candidate", "candidate n"],
    ["h", "hidden", "state h"],
  ];
  const HEADING = data.views.length > 1 ? "h3" : "h2"; // under the name of the run, or of the page
  const FEW = 8; // input columns, and predictions, drawn before "more" is pressed
  const FEWEST_LETTERS = 4; // of a name that is shortened
  const MOST_CLASSES = 16; // with their colours told

  // --- small things --------------------------------------------------------------------------------------------

  const sigma = (v) => 1 / (1 + Math.exp(-v));
  const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
  const minus = (text) => text.replace(/-/g, "−");
  const fixed = (v, digits = 3) => minus((Object.is(Math.round(v * 10 ** digits), -0) ? 0 : v).toFixed(digits));
  const percent = (v) => (v > 0 && v < 0.005 ? "<1%" : v < 1 && v >= 0.995 ? ">99%" : `${Math.round(100 * v)}%`);
  const memory = (v, longest) => (v === null ? `over ${Math.max(longest - 1, 0).toLocaleString("en")}` : v.toLocaleString("en"));

  /** A value of a table. size: of the largest beside it, next to which a rounding error of float32 is nothing. */
  function plain(v, size = 0) {
    if (v === null || v === undefined) return "missing";
    if (typeof v !== "number") return String(v);
    if (Math.abs(v) < 1e-6 * size) return "0";
    const grouped = Math.abs(v) >= 1e4 && Math.abs(v) < 1e15;
    return minus(grouped ? v.toLocaleString("en", { maximumSignificantDigits: 5 }) : String(+v.toPrecision(5)));
  }

  /** The smallest and the largest of some numbers that may have gaps. */
  function ends(...lists) {
    let low = Infinity, high = -Infinity;
    for (const list of lists) for (const v of list ?? []) if (v !== null) [low, high] = [Math.min(low, v), Math.max(high, v)];
    return [low, high];
  }

  /** A value of a column or an output in words, and the range of all of them. */
  const told = (one, v) => plain(v, Math.max(...one.ends.map(Math.abs)));
  function range(one) {
    const [low, high] = one.ends;
    return low > high ? "all missing" : low === high ? `always ${plain(low)}` : `${told(one, low)} to ${told(one, high)}`;
  }
  const first = (v) => (Array.isArray(v) ? v[0] : v); // of several steps ahead

  function make(tag, attributes = {}, ...children) {
    const out = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") out.textContent = value;
      else if (name.startsWith("on")) out.addEventListener(name.slice(2), value);
      else if (value !== false && value !== null) out.setAttribute(name, value);
    }
    out.append(...children);
    return out;
  }

  function svg(tag, attributes = {}, text) {
    const out = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) out.setAttribute(name, value);
    if (text !== undefined) out.textContent = text;
    return out;
  }

  /** A word with its definition, shown on hover and on focus. */
  function term(text, definition) {
    return make("dfn", { class: "term", tabindex: "0", text, "data-note": definition, "aria-description": definition });
  }

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  /** 16-bit whole numbers, or floats where they have no scale; little-endian, as they were written, on any machine. */
  function numbers({ scale, values }) {
    const raw = new DataView(bytes(values).buffer), size = scale ? 2 : 4;
    const out = scale ? new Int16Array(raw.byteLength / size) : new Float32Array(raw.byteLength / size);
    for (let i = 0; i < out.length; i++) out[i] = scale ? raw.getInt16(size * i, true) : raw.getFloat32(size * i, true);
    return out;
  }

  // --- colours -------------------------------------------------------------------------------------------------

  const hex = (c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16));
  const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"].map(hex); // 0 to 1, matplotlib's (CC0)
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // The ends and middles of ColorBrewer's RdBu (C. Brewer, M. Harrower and The Pennsylvania State University, Apache-2.0).
  const diverging = () => [hex("#2166ac"), hex("#67a9cf"), dark.matches ? hex("#20272c") : hex("#f7f7f7"), hex("#ef8a62"), hex("#b2182b")];

  function palette(stops) { // 256 colours
    const out = new Uint8ClampedArray(256 * 4);
    for (let i = 0; i < 256; i++) {
      const at = (i / 255) * (stops.length - 1), k = Math.min(Math.floor(at), stops.length - 2), f = at - k;
      for (let c = 0; c < 3; c++) out[4 * i + c] = stops[k][c] * (1 - f) + stops[k + 1][c] * f;
      out[4 * i + 3] = 255;
    }
    return out;
  }

  /** The colours of a heat map from one end to the other, for its label. */
  function colourKey(colours, low, high) {
    const bar = make("i", { class: "scale" });
    const stops = [0, 51, 102, 153, 204, 255].map((i) => `rgb(${colours.slice(4 * i, 4 * i + 3).join(" ")})`);
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    return make("span", { class: "key" }, bar, make("span", { class: "ends" }, make("span", { text: low }), make("span", { text: high })));
  }

  /** What the lines of a picture mean: [how it is drawn (a class of the style sheet), what it is] each. */
  function legend(...lines) {
    return make("span", { class: "key" }, ...lines.flatMap(([kind, text]) => [make("span", {}, make("i", { class: `line ${kind}` }), text), " "]));
  }

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Classes: colours that are told apart with every kind of colour vision come first (a test computes it), for those that are
  // most frequent on this page; then hues by the golden angle, in two shades. What no class of interest is stays grey.
  const TINTS = ["#80e6ff", "#ffc05d", "#ade9a3", "#fa82b9", "#fff54a", "#ef7555", "#9999e4", "#be8c85"];
  const SHADES = ["#1d3f80", "#9d4b00", "#1b6f4e", "#92487a", "#606530", "#77172d", "#5a46ad", "#513208"];
  const quiet = (text) => ["O", "0", "false"].includes(text);
  const ranks = new Map(); // of the classes on this page
  {
    const counts = new Map();
    for (const view of data.views)
      for (const { kind, values, truth } of view.outputs)
        if (kind !== "number") for (const v of [...(truth ?? []), ...values]) if (v !== null) counts.set(String(v), (counts.get(String(v)) ?? 0) + 1);
    for (const [text] of [...counts].sort((one, other) => other[1] - one[1])) if (!quiet(text)) ranks.set(text, ranks.size);
  }
  function tint(text) {
    if (quiet(text)) return style("--line");
    const k = ranks.get(text), list = dark.matches ? SHADES : TINTS;
    if (k < list.length) return list[k];
    const lightness = dark.matches ? [24, 34] : [82, 72];
    return `hsl(${(k * 137.508) % 360} ${dark.matches ? 45 : 60}% ${lightness[k % 2]}%)`; // by the golden angle
  }

  // --- the numbers of one layer and direction ------------------------------------------------------------------

  const TORCH = { reset: "after", layer_norm: false, zoneout: 0, candidate: "tanh" }; // the equations of torch.nn.GRU

  class Layer {
    constructor(raw, steps) {
      Object.assign(this, raw);
      this.form = { ...TORCH, ...raw.equations }; // as `gates.gates.Equations` has them; reset null: there is no such gate
      this.P = steps;
      this.place = new Map(raw.order.map((unit, row) => [unit, row]));
      this.decoded = {};
      for (const [name, field] of Object.entries(raw.fields)) this.decoded[name] = numbers(field);
      const h = Math.max(1, ...(raw.fields.h.scale ?? []).map((s) => 32767 * s)); // over 1 after a learnt first state, or in a minGRU
      this.bounds = { h, n: this.form.candidate === "tanh" ? 1 : this.largest("n") }; // of |h| and |n|
    }
    /** The gates that there are, and what they make. */
    get shown() { return MAPS.filter(([which]) => which !== "r" || this.form.reset); }
    get readsState() { return "state_n" in this.fields; }
    /** At least 1. */
    largest(which) {
      let most = 1;
      for (let u = 0; u < this.units; u++) for (let p = 0; p < this.P; p++) most = Math.max(most, Math.abs(this[which](u, p)));
      return most;
    }
    field(name, u, p) { return this.decoded[name][u * this.P + p] * (this.fields[name].scale?.[u] ?? 1); }
    z(u, p) { return sigma(this.field(this.readsState ? "sum_z" : "input_z", u, p)); }
    r(u, p) { return sigma(this.field("sum_r", u, p)); }
    n(u, p) {
      const v = this.field("input_n", u, p);
      if (this.form.candidate === "g") return v >= 0 ? v + 0.5 : sigma(v);
      const state = this.field("state_n", u, p);
      return Math.tanh(v + (this.form.reset === "after" ? this.r(u, p) * state : state));
    }
    /** How much of the old state stays: z, and what zoneout adds to it. */
    keep(u, p) { return this.z(u, p) + this.form.zoneout * (1 - this.z(u, p)); }
    h(u, p) { return this.field("h", u, p); }
    before(u, p) {
      if (this.fields.before) return this.field("before", u, p);
      const q = this.reverse ? p + 1 : p - 1;
      return q < 0 || q >= this.P ? this.edge[u] : this.h(u, q);
    }
    mean(which, p) {
      let sum = 0;
      for (let u = 0; u < this.units; u++) sum += this[which](u, p);
      return sum / this.units;
    }
    /** The step that changes the state most: where a reader should begin. */
    liveliest() {
      let best = 0, most = -1;
      for (let p = 0; p < this.P; p++) {
        let moved = 0;
        for (let u = 0; u < this.units; u++) moved += Math.abs(this.h(u, p) - this.before(u, p));
        if (moved > most) [best, most] = [p, moved];
      }
      return best;
    }
  }

  // --- one run -------------------------------------------------------------------------------------------------

  class View {
    constructor(root, raw, shared) {
      this.raw = raw;
      this.root = root;
      this.shared = shared;
      this.P = raw.steps.length;
      this.layers = raw.layers.map((layer) => new Layer(layer, this.P));
      this.lean = bytes(raw.lean.rows);
      this.layer = this.layers[0];
      this.p = 0;
      this.all = { columns: false, outputs: false }; // or the first few
      for (const column of raw.columns) if (column.kind === "number") column.ends = ends(column.values, column.low, column.high);
            this.sorted = "memory";
      this.root.append(this.bar(), (this.said = make("div", { class: "said" })), this.body());
      this.unit = this.firstUnit();
    }

    firstUnit() {
      const kinds = this.layer.statistics.kind;
      return this.layer.order.find((u) => kinds[u] !== "still") ?? this.layer.order[0];
    }

    /** The name of a step for people: its number, its time, its word. */
    stepName(p) {
      const words = this.raw.columns.find((c) => c.kind === "words");
      const step = `step ${this.raw.steps[p].toLocaleString("en")} of ${this.raw.length.toLocaleString("en")}`;
      if (words) return `${step}: “${plain(words.values[p])}”`;
      return this.raw.times ? `${step}, time ${this.raw.times[p]}` : step;
    }

    shown(kind) { return this.all[kind] ? this.raw[kind] : this.raw[kind].slice(0, FEW); }

    // --- what is built once

    bar() {
      const option = (value, text) => make("option", { value, text });
      this.layerChoice = make("select", { onchange: () => this.setLayer(+this.layerChoice.value) });
      this.layers.forEach((layer, k) => this.layerChoice.append(option(k, `${layer.title} (${layer.name})`)));
      this.unitChoice = make("select", { onchange: () => this.shared.draw(this, () => (this.unit = +this.unitChoice.value)) });
      return make("div", { class: "bar" }, make("label", {}, "Layer ", this.layerChoice), make("label", {}, "Unit ", this.unitChoice));
    }

    body() {
      this.tracks = make("div", { class: "tracks" });
      this.cursor = make("div", { class: "cursor" });
      this.slider = make("input", {
        type: "range", min: 0, max: this.P - 1, step: 1, "aria-label": "step",
        oninput: () => this.shared.go(this, +this.slider.value),
      });
      this.clock = make("output", {});
      this.below = make("div", { class: "below" });
      this.title = make(HEADING, { "aria-live": "polite" });
      this.facts = make("div");
      this.inside = make("div");
      const panel = make("aside", { class: "panel", "aria-label": "this step" }, this.title, make("div", { class: "halves" }, this.facts, this.inside));
      const grab = (event) => {
        if (event.buttons !== 1) return;
        const box = this.plotBox();
        const p = clamp(Math.floor(((event.clientX - box.left) / box.width) * this.P), 0, this.P - 1);
        const map = event.target.closest?.(".map canvas");
        let unit = this.unit;
        if (map && event.type === "pointerdown") {
          const area = map.getBoundingClientRect();
          unit = this.layer.order[clamp(Math.floor(((event.clientY - area.top) / area.height) * this.layer.units), 0, this.layer.units - 1)];
        }
        this.unit = unit;
        this.shared.go(this, p);
      };
      this.tracks.addEventListener("pointerdown", (event) => {
        if (event.target.closest(".label, .more")) return;
        this.tracks.setPointerCapture(event.pointerId);
        this.dragged = true;
        grab(event);
      });
      this.tracks.addEventListener("pointermove", (event) => { if (this.dragged) grab(event); });
      for (const end of ["pointerup", "pointercancel"]) this.tracks.addEventListener(end, () => (this.dragged = false));
      const left = make("div", {}, this.tracks, make("div", { class: "time" }, this.clock, this.slider));
      return make("div", { class: "body" }, left, panel, this.below);
    }

    plotBox() { return this.tracks.querySelector("canvas").getBoundingClientRect(); }

    row(label, kind, height, draw, ...more) {
      const canvas = make("canvas", { "aria-hidden": "true" });
      canvas.style.height = `${height}px`;
      const named = (part) => (typeof part === "string" ? make("span", { class: "name", text: part, title: part }) : part);
      const text = make("div", { class: "label" }, ...label.map(named));
      const row = make("div", { class: `row ${kind}` }, text, make("div", { class: "plot" }, canvas, ...more));
      this.tracks.append(row);
      const painter = () => draw(canvas);
      this.painters.push(painter);
      if (kind === "leans") this.leaning.push(painter);
      return row;
    }

    /** All rows anew: after another layer or another colour scheme. */
    build() {
      this.tracks.replaceChildren();
      this.painters = [];
      this.leaning = [];
      this.leaned = null;
      const { raw } = this;
      for (const column of this.shown("columns")) {
        if (column.kind === "number") this.row([column.name, make("span", { class: "key", text: range(column) })], "", 34, (canvas) => this.drawLines(canvas, column, [column.values]));
        else {
          const words = column.kind === "words", leaning = words && this.P <= 60; // its cells are wide enough to be shaded
          this.row([column.name], leaning ? "leans" : "", 24, (canvas) => this.drawWords(canvas, column.values, { leaning, words }));
        }
      }
      this.more("columns", "column");
      this.row([term("prediction leans on", data.definitions.lean)], "leans", 14, (canvas) => this.drawLean(canvas));
      this.tracks.append(make("div", { class: "gap" }));
      if (raw.per !== "sequence") {
        for (const output of this.shown("outputs")) this.outputRows(output);
        this.more("outputs", "prediction");
      }
      this.tracks.append(make("p", { class: "caption", text: "Rows are units, the longest memory on top; columns are steps." }));
      for (const [which, name, title, low, high] of this.layer.shown) {
        const mark = make("div", { class: "mark" });
        const signed = which === "n" || which === "h", bound = this.layer.bounds[which] ?? 1;
        const colours = palette(signed ? diverging() : VIRIDIS);
        const key = signed ? colourKey(colours, plain(-bound), plain(bound)) : colourKey(colours, low, high);
        const height = clamp(this.layer.units * 3, 60, 132);
        const row = this.row([term(title, data.definitions[name]), key], "map tall", height, (canvas) => this.drawMap(canvas, which, colours, signed && bound), mark);
        row.mark = mark;
      }
      const drawn = ["h", "z", "r", "n"].filter((which) => which !== "r" || this.layer.form.reset);
      const lines = legend(...drawn.map((which) => [which, which])), size = plain(Math.max(this.layer.bounds.h, this.layer.bounds.n));
      this.unitRow = this.row(["…", lines, make("span", { class: "key", text: `−${size} to ${size}` })], "tall", 84, (canvas) => this.drawUnit(canvas));
      this.tracks.append(this.cursor);
      this.below.replaceChildren(...this.unitsBelow());
      this.said.replaceChildren(...this.layer.sentences.map(([text, definition]) => make("p", {}, term(text, definition))));
      const { kind, memory_length_steps: lengths } = this.layer.statistics;
      const name = (u) => kind[u] === "unknown" ? `${u}` : `${u}: ${kind[u]}, remembers ${memory(lengths[u], this.layer.longest)} step${lengths[u] === 1 ? "" : "s"}`;
      this.unitChoice.replaceChildren(...this.layer.order.map((u) => make("option", { value: u, text: name(u) })));
      this.layerChoice.value = this.layers.indexOf(this.layer);
      this.paint();
    }

    paint() {
      this.marked = null; // `update` marks the unit anew
      for (const painter of this.painters) painter();
    }

    more(kind, word) {
      const rest = this.raw[kind].length - FEW;
      if (rest <= 0) return;
      const press = () => {
        this.all[kind] = !this.all[kind];
        this.build();
        this.update();
        this.tracks.querySelector(`.more.${kind} button`).focus(); // the button pressed is gone
      };
      const text = this.all[kind] ? `fewer ${word}s` : `${rest} more ${word}${rest > 1 ? "s" : ""}`;
      this.tracks.append(make("div", { class: `more ${kind}` }, make("button", { type: "button", text, onclick: press })));
    }

    outputRows(output) {
      const several = this.raw.outputs.length > 1 ? `: ${output.name}` : "";
      const ahead = this.raw.horizon > 1 ? ", 1 step ahead" : this.raw.horizon ? ", the next step" : "";
      const keyed = output === this.raw.outputs[0];
      if (output.kind === "number") {
        const lines = [output.values.map(first)];
        if (output.truth) lines.push(output.truth.map(first));
        const label = [`${output.name}${ahead}`, make("span", { class: "key", text: range(output) })];
        if (keyed) label.push(legend(["h", "predicted"], ...(output.truth ? [["true", "true"]] : [])));
        this.row(label, "", 48, (canvas) => this.drawLines(canvas, output, lines));
        return;
      }
      const wrong = output.truth && output.values.map((v, p) => (output.truth[p] === null ? null : output.truth[p] !== v));
      const label = [`prediction${several}${ahead}`];
      if (wrong) label.push(this.wrongKey(wrong));
      const strip = (name, values, ...more) => {
        const row = this.row(name, "", 24, (canvas) => this.drawClasses(canvas, values, ...more)), canvas = row.querySelector("canvas");
        canvas.addEventListener("pointermove", (event) => (canvas.title = plain(values[clamp(Math.floor((this.P * event.offsetX) / canvas.clientWidth), 0, this.P - 1)])));
      };
      strip(label, output.values, wrong);
      if (output.truth) strip([`true${several}`], output.truth);
      if (output.kind === "class") this.classKey(output);
    }

    /** How often a prediction is wrong, in words beside its sign; where not every step is drawn, the sign alone. */
    wrongKey(wrong) {
      const known = wrong.filter((bad) => bad !== null), bad = known.filter(Boolean).length;
      const text = this.raw.shown > this.P ? "wrong" : bad ? `${bad} of ${known.length} wrong` : "none wrong";
      return make("span", { class: "key" }, ...(text === "none wrong" ? [] : [make("i", { class: "cross", text: "✗" }), " "]), text);
    }

    /** The colours of the classes that occur, with their whole names. */
    classKey({ values, truth }) {
      const names = [...new Set([...values, ...(truth ?? [])].filter((v) => v !== null).map(String))];
      names.sort((one, other) => (ranks.get(one) ?? Infinity) - (ranks.get(other) ?? Infinity));
      const shown = names.slice(0, MOST_CLASSES), rest = names.length - shown.length;
      const key = make("div", { class: "classes" });
      for (const name of shown) {
        const swatch = make("i", { class: "swatch" });
        swatch.style.background = tint(name);
        key.append(make("span", {}, swatch, name), " ");
      }
      if (rest) key.append(make("span", { text: `and ${rest} more` }));
      this.tracks.append(key);
    }

    unitsBelow() {
      const { layer } = this, s = layer.statistics;
      const edges = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000].filter((e, i, all) => i < 3 || all[i - 1] < layer.longest);
      const counts = new Array(edges.length + 1).fill(0);
      for (const m of s.memory_length_steps) {
        const k = m === null ? edges.length : edges.findIndex((e) => m <= e);
        counts[k < 0 ? edges.length : k]++;
      }
      const most = Math.max(...counts), used = counts.reduce((last, count, k) => (count ? k : last), 0);
      const said = []; // the same in words
      const bars = counts.slice(0, Math.max(used, 2) + 1).map((count, k) => {
        const low = k ? edges[k - 1] + 1 : 1;
        const label = k === edges.length ? "longer" : low >= edges[k] ? `${edges[k]}` : `${low}–${edges[k]}`;
        const bar = make("i");
        bar.style.height = `${(60 * count) / most}%`;
        if (count) said.push(`${label} steps: ${count}`);
        return make("div", {}, make("span", { text: count || "" }), bar, make("span", { text: label }));
      });
      const columns = [
        ["unit", "unit", (u) => u, (u) => u],
        ["memory", "memory (steps)", (u) => memory(s.memory_length_steps[u], layer.longest), (u) => -(s.memory_length_steps[u] ?? Infinity)],
        ["keeps", "z open", (u) => percent(s.update_near_1[u]), (u) => -s.update_near_1[u]],
        ["writes", "z shut", (u) => percent(s.update_near_0[u]), (u) => -s.update_near_0[u]],
        ["sees", "r open", (u) => percent(s.reset_near_1[u]), (u) => -s.reset_near_1[u]],
        ["ignores", "r shut", (u) => percent(s.reset_near_0[u]), (u) => -s.reset_near_0[u]],
        ["range", "range of h", (u) => `${fixed(s.low[u], 2)} to ${fixed(s.high[u], 2)}`, (u) => s.low[u] - s.high[u]],
        ["kind", "kind", (u) => s.kind[u], (u) => s.kind[u]],
      ].filter(([id]) => layer.form.reset || (id !== "sees" && id !== "ignores"));
      const body = make("tbody");
      const fill = () => {
        const by = columns.find(([id]) => id === this.sorted)[3];
        const units = [...layer.order].sort((a, b) => (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : 0));
        this.unitRows = new Map();
        body.replaceChildren(
          ...units.map((u) => {
            const row = make("tr", { onclick: () => this.shared.draw(this, () => (this.unit = u)) });
            row.append(...columns.map(([, , text]) => make("td", { text: text(u) })));
            this.unitRows.set(u, row);
            return row;
          }),
        );
        this.chooseRow();
      };
      const sorting = ([id]) => (id !== this.sorted ? null : id === "unit" || id === "kind" ? "ascending" : "descending");
      const heads = columns.map((column) => {
        const press = () => {
          this.sorted = column[0];
          heads.forEach((head, k) => (sorting(columns[k]) ? head.setAttribute("aria-sort", sorting(columns[k])) : head.removeAttribute("aria-sort")));
          fill();
        };
        return make("th", { scope: "col", "aria-sort": sorting(column) }, make("button", { type: "button", text: column[1], onclick: press }));
      });
      fill();
      return [
        make(HEADING, {}, term("How long the units remember", data.definitions.memory), make("span", { class: "soft", text: " (units by memory length in steps)" })),
        make("div", { class: "histogram", role: "img", "aria-label": `units by memory length: ${said.join("; ")}` }, ...bars),
        make(HEADING, {}, "The units of this layer", make("span", { class: "soft" }, ", share of steps with a gate ", term("open or shut", data.definitions.saturated))),
        make("div", { class: "units", tabindex: "0", role: "region", "aria-label": "table of units" }, make("table", { "aria-label": "units" }, make("thead", {}, make("tr", {}, ...heads)), body)),
      ];
    }

    // --- pictures

    context(canvas) {
      const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
      const c = canvas.getContext("2d");
      c.scale(ratio, ratio);
      return [c, width, height];
    }

    /** bound: of a signed quantity, which is drawn from -bound to bound; false: from 0 to 1. */
    drawMap(canvas, which, colours, bound) {
      const { layer, P } = this, H = layer.units;
      canvas.width = P;
      canvas.height = H;
      // Fewer pixels than units: let the browser average them, else show every cell as it is.
      canvas.style.imageRendering = H > canvas.clientHeight || P > canvas.clientWidth ? "auto" : "pixelated";
      const c = canvas.getContext("2d"), image = c.createImageData(P, H);
      for (let row = 0; row < H; row++) {
        const u = layer.order[row];
        for (let p = 0; p < P; p++) {
          const v = layer[which](u, p), i = Math.round(255 * clamp(bound ? (v / bound + 1) / 2 : v, 0, 1));
          image.data.set(colours.subarray(4 * i, 4 * i + 4), 4 * (row * P + p));
        }
      }
      c.putImageData(image, 0, 0);
    }

    /** A number over time: a thin line, and, for a prediction, the truth behind it as a broad one. */
    drawLines(canvas, { ends: [bottom, top], low, high }, [line, truth]) {
      const [c, width, height] = this.context(canvas), { P } = this;
      const span = top - bottom || 1;
      const x = (p) => ((p + 0.5) * width) / P, y = (v) => (top === bottom ? height / 2 : height - 4 - ((height - 8) * (v - bottom)) / span);
      const draw = (values, colour, thick) => {
        c.strokeStyle = style(colour);
        c.lineWidth = thick;
        c.beginPath();
        values.forEach((v, p) => {
          if (v === null) return;
          const opens = (values[p - 1] ?? null) === null, closes = (values[p + 1] ?? null) === null;
          if (opens) c.moveTo(x(p) - (closes ? 2 : 0), y(v)); // a point between two gaps is a short line
          c.lineTo(x(p) + (opens && closes ? 2 : 0), y(v));
        });
        c.stroke();
      };
      c.lineJoin = c.lineCap = "round";
      if (low) {
        c.strokeStyle = style("--line");
        c.lineWidth = Math.max(1, width / P);
        c.beginPath();
        low.forEach((v, p) => { if (v !== null) { c.moveTo(x(p), y(v) + 0.5); c.lineTo(x(p), y(high[p]) - 0.5); } });
        c.stroke();
      }
      if (truth) {
        draw(truth, "--truth", 5);
        draw(line, "--wash", 3.2);
      }
      draw(line, "--strong", 1.4);
    }

    /** The words of a column; neighbours that are equal share a cell where the steps are too narrow for text each. */
    drawWords(canvas, values, { leaning = false, words = false } = {}) {
      const { P } = this, narrow = canvas.clientWidth / P < 40, upright = words && narrow && canvas.clientWidth / P > 11;
      canvas.style.height = upright ? "76px" : "24px"; // words of a sentence are read from below where cells are narrow
      const [c, width, height] = this.context(canvas), cell = width / P;
      this.lettering(c);
      const merge = narrow && !upright;
      for (const [p, end] of this.stretches(values, merge)) {
        const left = p * cell, room = (end - p) * cell;
        if (leaning) {
          c.fillStyle = style("--warm");
          c.globalAlpha = 0.5 * this.leanAt(p); // so that the word stays readable
          c.fillRect(left, 0, room - 1, height);
          c.globalAlpha = 1;
        } else if (!merge) {
          c.fillStyle = style("--line");
          c.fillRect(left + room - 1, 4, 1, height - 8);
        }
        c.fillStyle = style("--ink");
        const short = this.fitted(c, values[p] === null ? "–" : String(values[p]), (upright ? height : room) - 4);
        if (upright) this.upright(c, short, left + room / 2, height - 3);
        else if (short) c.fillText(short, left + Math.max(2, (room - c.measureText(short).width) / 2), height / 2 + 0.5);
      }
    }

    /** Classes as coloured cells with their names: in one line or more, or from below, or, where there is no room for what would still
     * be a name, without. wrong: which are, null where nobody knows; they get a frame, and a cross in a red lane below. */
    drawClasses(canvas, values, wrong = null) {
      const { P } = this, cell = canvas.clientWidth / P, lane = !wrong ? 0 : cell < 9 ? 5 : 12;
      const before = canvas.getContext("2d");
      this.lettering(before);
      const runs = this.stretches(values, cell < 40).map(([p, end]) => {
        const text = values[p] === null ? "–" : String(values[p]), room = (end - p) * cell - 5;
        const lines = this.wrapped(before, text, room), up = !lines && room > 8;
        return { p, end, text, lines, up, size: lines ? 13 * lines.length + 8 : up ? Math.min(76, before.measureText(text).width + 9) : 0 };
      });
      canvas.style.height = `${Math.max(24, ...runs.map(({ size }) => size)) + lane}px`;
      const [c, , whole] = this.context(canvas), height = whole - lane;
      this.lettering(c);
      for (const { p, end, text, lines, up } of runs) {
        const left = p * cell, room = (end - p) * cell;
        if (values[p] !== null) {
          c.fillStyle = tint(text);
          c.fillRect(left, 0, room - (room > 3 ? 1 : 0), height);
        }
        c.fillStyle = style("--ink");
        if (up) this.upright(c, this.fitted(c, text, height - 6), left + room / 2, height - 3);
        lines?.forEach((line, k) => c.fillText(line, left + (room - c.measureText(line).width) / 2, height / 2 + 0.5 + 13 * (k - (lines.length - 1) / 2)));
      }
      if (!wrong) return;
      for (const [p, end] of this.stretches(wrong, true)) {
        if (!wrong[p]) continue;
        const left = p * cell, room = Math.max((end - p) * cell - 1, 1);
        c.fillStyle = c.strokeStyle = style("--bad");
        c.fillRect(left, height, room, lane);
        c.lineWidth = 2;
        if (room > 6) c.strokeRect(left + 1, 1, room - 2, height);
        c.strokeStyle = style("--paper");
        c.lineWidth = 1.6;
        c.beginPath();
        if (lane > 5) for (let q = p; q < end; q++) {
          const x = (q + 0.5) * cell, y = height + 5.5;
          for (const turn of [1, -1]) { c.moveTo(x - 2.5, y - 2.5 * turn); c.lineTo(x + 2.5, y + 2.5 * turn); }
        }
        c.stroke();
      }
    }

    /** [first, one past the last] of neighbours with equal values, or of every value by itself. */
    stretches(values, merge) {
      const out = [];
      for (let p = 0, end; p < values.length; p = end) {
        end = p + 1;
        while (merge && end < values.length && values[end] === values[p]) end++;
        out.push([p, end]);
      }
      return out;
    }

    lettering(c) {
      c.font = "12px system-ui, sans-serif";
      c.textBaseline = "middle";
    }

    upright(c, text, x, y) {
      c.save();
      c.translate(x, y);
      c.rotate(-Math.PI / 2);
      c.fillText(text, 0, 0);
      c.restore();
    }

    /** A name on up to three lines, cut after _, - and blanks alone; null where it doesn't fit so. */
    wrapped(c, text, room) {
      const lines = [""], fits = (line) => c.measureText(line).width <= room;
      if (fits(text)) return [text];
      for (const part of text.slice(0, 200).split(/(?<=[_\-\s])/)) {
        if (fits(lines.at(-1) + part)) lines[lines.length - 1] += part;
        else if (lines[0] === "") lines[0] = part;
        else lines.push(part);
      }
      return lines.length <= 3 && text.length <= 200 && lines.every(fits) ? lines : null;
    }

    /** As much of a text as there is room for; nothing where too little of it would be left to be a name. */
    fitted(c, text, room) {
      if (c.measureText(text).width <= room) return text;
      const letters = [...text.slice(0, 100)]; // not halves of an emoji
      // Names of classes often begin alike (B-rating_unit, B-rating_value): the middle is left out, not the end.
      const short = (kept) => `${letters.slice(0, Math.floor(kept / 3)).join("")}…${letters.slice(letters.length - Math.ceil((2 * kept) / 3)).join("")}`;
      for (let kept = letters.length - 1; kept >= FEWEST_LETTERS; kept--) if (c.measureText(short(kept)).width <= room) return short(kept);
      return "";
    }

    leanAt(p) { return this.lean[(this.raw.per === "sequence" ? 0 : this.p * this.P) + p] / 255; }

    drawLean(canvas) {
      const [c, width, height] = this.context(canvas), cell = width / this.P;
      c.fillStyle = style("--warm");
      for (let p = 0; p < this.P; p++) {
        c.globalAlpha = this.leanAt(p);
        c.fillRect(p * cell, 0, Math.max(1, cell - (cell > 6 ? 1 : 0)), height);
      }
    }

    drawUnit(canvas) {
      const [c, width, height] = this.context(canvas), { layer, unit, P } = this;
      const x = (p) => ((p + 0.5) * width) / P;
      const bound = Math.max(layer.bounds.h, layer.bounds.n), y = (v) => height / 2 - (v / bound) * (height / 2 - 3);
      c.strokeStyle = style("--line");
      c.beginPath();
      c.moveTo(0, y(0));
      c.lineTo(width, y(0));
      c.stroke();
      for (const [which, colour, dash, thick] of [["z", "--warm", [], 1.4], ["r", "--soft", [2, 3], 1.2], ["n", "--good", [6, 3], 1.2], ["h", "--strong", [], 2.2]]) {
        if (which === "r" && !layer.form.reset) continue;
        c.strokeStyle = style(colour);
        c.setLineDash(dash);
        c.lineWidth = thick;
        c.beginPath();
        c.moveTo(0, y(layer[which](unit, 0))); // from edge to edge, so that a single step shows too
        for (let p = 0; p < P; p++) c.lineTo(x(p), y(layer[which](unit, p)));
        c.lineTo(width, y(layer[which](unit, P - 1)));
        c.stroke();
      }
    }

    // --- what changes with the step and the unit

    update() {
      const { unit, p, raw } = this, room = "(100% - var(--gutter))";
      this.cursor.style.left = `calc(var(--gutter) + ${room} * ${p / this.P})`;
      this.cursor.style.width = `calc(${room} / ${this.P})`;
      this.slider.value = p;
      this.slider.setAttribute("aria-valuetext", this.stepName(p));
      this.clock.textContent = `step ${raw.steps[p].toLocaleString("en")}`;
      if (this.marked !== unit) this.markUnit();
      this.leanAgain();
      this.showPanel();
    }

    markUnit() {
      const { layer, unit } = this;
      this.marked = unit;
      this.unitChoice.value = unit;
      for (const row of this.tracks.querySelectorAll(".map")) row.mark.style.top = `${(100 * (layer.place.get(unit) + 0.5)) / layer.units}%`;
      this.unitRow.querySelector(".name").textContent = `unit ${unit}`;
      this.drawUnit(this.unitRow.querySelector("canvas"));
      this.chooseRow();
    }

    chooseRow() {
      this.below.querySelector("[aria-current]")?.removeAttribute("aria-current");
      this.unitRows.get(this.unit)?.setAttribute("aria-current", "true");
    }

    /** Draw the strips that show what the prediction under the cursor leans on, and no others. */
    leanAgain() {
      if (this.leaned === this.p || this.raw.per === "sequence") return;
      this.leaned = this.p;
      for (const painter of this.leaning) painter();
    }

    showPanel() {
      const { layer, unit, p } = this;
      if (this.title.textContent !== this.stepName(p)) this.title.textContent = this.stepName(p); // read aloud only when it changes
      this.facts.replaceChildren(...this.factTables());
      const m = layer.statistics.memory_length_steps[unit];
      const held = m === null ? "It holds on for longer than can be seen here." : m <= 1 ? "Half of what it holds is gone a step later: it follows the input." : `Half of what it holds is forgotten after ${memory(m)} steps.`;
      const means = (layer.form.reset ? ["z", "r"] : ["z"]).map((which) => `${which} ${fixed(layer.mean(which, p), 2)}`).join(", ");
      const all = layer.units > 1 ? ` On average over all ${layer.units} units, at this step: ${means}.` : "";
      const thick = make("span", { class: "soft", text: " (lines as thick as what passes)" });
      this.inside.replaceChildren(make(HEADING, {}, `Unit ${unit} at this step`, thick), this.cell(), this.equations(), make("p", { class: "soft" }, held, all));
    }

    factTables() {
      const { p, raw } = this, at = raw.per === "sequence" ? 0 : p;
      const line = (name, ...cells) => make("tr", {}, make("th", { scope: "row", text: name }), make("td", {}, ...cells));
      const inputs = this.shown("columns").map((column) => {
        const unknown = column.unknown?.includes(p) ? " (not in the vocabulary: read as unknown)" : "";
        return line(column.name, (column.ends ? told(column, column.values[p]) : plain(column.values[p])) + unknown);
      });
      const tables = [make("table", { class: "facts", "aria-label": "inputs and prediction" }, ...inputs)];
      if (raw.outputs[0].top) tables[0].append(...this.classLines(line, at));
      else tables.push(this.outputsTable(at));
      if (raw.columns.length > 1) {
        const shares = raw.lean.columns[at].map((share, k) => [share, raw.columns[k].name]).sort((a, b) => b[0] - a[0]);
        const leans = shares.slice(0, 4).map(([share, name]) => make("div", {}, `${name} ${percent(share)}`));
        tables.push(make("table", { class: "facts", "aria-label": "what the prediction leans on" }, line(raw.lean.outputs.length ? `leans on (${raw.lean.outputs[at]})` : "leans on", ...leans)));
      }
      return tables;
    }

    /** What a prediction is one of, where that isn't this very step. */
    whatIsPredicted() {
      const { per, horizon } = this.raw;
      return per === "sequence" ? " (of the whole sequence)" : horizon > 1 ? ` (the next ${horizon} steps)` : horizon ? " (the next step)" : "";
    }

    classLines(line, at) {
      const [output] = this.raw.outputs;
      const cells = output.top[at].map(([text, share], k) => {
        const meter = make("span", { class: "meter" });
        meter.style.width = `${Math.max(1, 60 * share)}px`;
        return make("div", { class: k ? "soft" : "" }, meter, ` ${text} ${percent(share)}`);
      });
      return [line(`prediction${this.whatIsPredicted()}`, ...cells), line("true", this.verdict(output, at))];
    }

    verdict({ truth, values }, at) {
      if (!truth) return "not in this table";
      if (truth[at] === null) return "not known";
      const right = truth[at] === values[at];
      return make("span", { class: right ? "right" : "wrong", text: `${truth[at]} ${right ? "✓" : "✗"}` });
    }

    /** Labels and numbers: a row each, predicted and true side by side. */
    outputsTable(at) {
      const list = (output, v) => (Array.isArray(v) ? v.slice(0, 6).map((one) => told(output, one)).join(", ") + (v.length > 6 ? ", …" : "") : told(output, v));
      const rows = this.shown("outputs").map((output) => {
        const guess = output.kind === "number" ? list(output, output.values[at]) : `${output.values[at]} (${percent(output.probability[at])} for 1)`;
        const truth = output.kind === "number" && output.truth ? list(output, output.truth[at]) : this.verdict(output, at);
        return make("tr", {}, make("th", { scope: "row", text: output.name }), make("td", { text: guess }), make("td", {}, truth));
      });
      const head = make("tr", {}, make("td"), ...[`predicted${this.whatIsPredicted()}`, "true"].map((text) => make("th", { scope: "col", text })));
      return make("table", { class: "facts outputs", "aria-label": "predictions" }, make("thead", {}, head), make("tbody", {}, ...rows));
    }

    /** What goes into the cell, short enough for its box. */
    input() {
      const { raw, p } = this, { columns } = raw;
      if (!this.layer.name.startsWith("l0")) return "layer below";
      const one = columns.length === 1 ? columns[0] : columns.find((c) => c.kind === "words");
      return one ? plain(one.values[p]) : `${columns.length} inputs`;
    }

    /** The cell as a picture: who sends what to whom, as strongly as this unit does at this step. */
    cell() {
      const { layer, unit, p } = this;
      const { reset } = layer.form;
      const z = layer.z(unit, p), r = reset ? layer.r(unit, p) : null, n = layer.n(unit, p), h = layer.h(unit, p), before = layer.before(unit, p);
      const input = this.input(), keep = layer.keep(unit, p);
      const out = svg("svg", { viewBox: "0 -16 432 272", class: "cell", role: "img" });
      out.append(svg("title", {}, `Unit ${unit}: ${reset ? `reset gate ${fixed(r)}, ` : ""}update gate ${fixed(z)}, candidate ${fixed(n)}, old state ${fixed(before)}, new state ${fixed(h)}`));
      const marker = svg("defs");
      for (const [id, colour] of [["tip", "--soft"], ["tip-flow", "--strong"], ["tip-keep", "--warm"]]) {
        const size = id === "tip" ? 8 : 13; // wider than the line, which ends at its base
        const m = svg("marker", { id, viewBox: "0 0 8 8", refX: id === "tip" ? 7 : 1, refY: 4, markerWidth: size, markerHeight: size, markerUnits: "userSpaceOnUse", orient: "auto" });
        m.append(svg("path", { d: "M0,0 L8,4 L0,8 z", style: `fill: var(${colour}); stroke: none` }));
        marker.append(m);
      }
      out.append(marker);
      const edge = (d, share, kind = "") => out.append(svg("path", { d, class: kind, "stroke-width": (0.8 + 6 * share).toFixed(2), "marker-end": `url(#tip${kind ? `-${kind}` : ""})` }));
      edge("M92,214 C130,214 120,92 164,92", 0.1); //            X to Z
      if (reset) edge("M92,220 C130,220 130,168 164,168", 0.1); // X to R
      edge("M92,232 L250,232", 0.1); //                          X to C
      if (layer.readsState) edge("M92,46 C125,46 125,84 164,84", 0.1); // h to Z
      if (reset) edge("M92,52 C128,52 124,156 164,156", 0.1); // h to R
      if (reset) edge("M206,186 C206,208 216,218 239,218", r, "flow"); // R into C
      edge("M318,204 C318,160 318,128 329,128", 1 - keep, "flow"); // C into H
      edge("M248,88 C300,88 310,112 340,114", 0.1); //           Z into H
      edge("M92,36 C220,4 382,6 384,82", keep, "keep"); //      the old state into the new one
      const node = (x, y, name, value, kind, title) => {
        const g = svg("g", { class: kind, transform: `translate(${x},${y})` });
        g.append(svg("title", {}, title), svg("rect", { width: 84, height: 46, rx: 8 }), svg("text", { x: 42, y: 15, class: "small" }, name), svg("text", { x: 42, y: 36, class: "value" }, value));
        g.querySelector("rect").dataset.value = value;
        out.append(g);
      };
      const shorten = (text) => { // letters of East Asia are twice as wide
        const letters = [...text.slice(0, 40)], wide = letters.some((letter) => letter > "\u2e80") ? 6 : 11;
        return letters.length > wide ? `${letters.slice(0, wide - 1).join("")}…` : text;
      };
      node(8, 22, "old state h", fixed(before), "state", data.definitions.hidden);
      node(8, 204, "input x", shorten(input), "input", input);
      node(164, 66, "update gate z", fixed(z), "gate update", data.definitions.update);
      if (reset) node(164, 140, "reset gate r", fixed(r), "gate reset", data.definitions.reset);
      node(252, 204, "candidate n", fixed(n), "candidate", data.definitions.candidate);
      node(340, 94, "new state h′", fixed(h), "state new", data.definitions.hidden);
      const label = (x, y, text, anchor) => out.append(svg("text", { x, y, class: "edge", style: `text-anchor: ${anchor}` }, text));
      label(262, 0, `keeps ${percent(keep)}`, "middle");
      label(330, 178, `writes ${percent(1 - keep)}`, "start");
      if (reset) label(216, 198, `lets ${percent(r)} through`, "start");
      return out;
    }

    equations() {
      const { layer, unit: u, p } = this, { reset, layer_norm: norm, zoneout, candidate } = layer.form;
      const f = (v) => fixed(v), signed = (v) => (v < 0 ? `− ${fixed(-v)}` : `+ ${fixed(v)}`);
      const input = (g) => layer.field(`input_${g}`, u, p), state = (g) => layer.field(`sum_${g}`, u, p) - input(g);
      const z = layer.z(u, p), n = layer.n(u, p), h = layer.h(u, p), before = layer.before(u, p);
      const bracket = (v) => (v < 0 ? `(${fixed(v)})` : fixed(v));
      const out = make("div", { class: "equation", tabindex: "0", role: "group", "aria-label": `the equations of unit ${u} with its numbers` });
      const line = (left, symbols, filled, value) => out.append(make("span", { class: "in", text: `${left.padEnd(2)} = ${symbols}\n` }), `   = ${filled} = `, make("b", { text: value }), "\n");
      const product = (text) => (norm ? `LN(${text})` : text), ofX = (g) => `${product(`W_i${g} x`)} + b_i${g}`;
      const ofH = (g, read = "h") => `${product(`W_h${g} ${read}`)} + b_h${g}`;
      const gate = (g, value) => line(g, `σ(${ofX(g)} + ${ofH(g)})`, `σ(${f(input(g))} ${signed(state(g))})`, f(value));
      if (reset) {
        const r = layer.r(u, p), inside = layer.field("state_n", u, p);
        gate("r", r);
        gate("z", z);
        if (reset === "after") line("n", `tanh(${ofX("n")} + r·(${ofH("n")}))`, `tanh(${f(input("n"))} + ${f(r)}·${bracket(inside)})`, f(n));
        else line("n", `tanh(${ofX("n")} + ${ofH("n", "(r·h)")})`, `tanh(${f(input("n"))} ${signed(inside)})`, f(n));
      } else { // no gate reads the state
        line("z", "σ(W_z x + b_z)", `σ(${f(input("z"))})`, f(z));
        line("n", "g(W_h x + b_h)", `g(${f(input("n"))})`, f(n));
      }
      const mixed = `${f(1 - z)}·${bracket(n)} + ${f(z)}·${bracket(before)}`;
      if (zoneout) line("h′", "p·h + (1 − p)·((1 − z)·n + z·h)", `${f(zoneout)}·${bracket(before)} + ${f(1 - zoneout)}·(${mixed})`, f(h));
      else line("h′", "(1 − z)·n + z·h", mixed, f(h));
      const say = (text) => out.append(make("span", { class: "in", text }), "\n");
      if (norm) say("LN: layer norm, r and z together, times a gain");
      if (zoneout) say(`p = ${plain(zoneout)}: zoneout keeps that much in any case`);
      if (candidate === "g") say("g(v) = v + 1/2 where v ≥ 0, else σ(v)");
      out.lastChild.remove();
      return out;
    }

    setLayer(k) {
      this.layer = this.layers[k];
      this.unit = this.firstUnit();
      this.build();
      this.update();
    }
  }

  // --- all runs on the page ------------------------------------------------------------------------------------

  const shared = {
    views: [],
    /** To the step p of one view, and to the nearest one in the others. */
    go(view, p) {
      const step = view.raw.steps[clamp(p, 0, view.P - 1)];
      for (const other of this.views) {
        let best = 0;
        other.raw.steps.forEach((s, k) => { if (Math.abs(s - step) < Math.abs(other.raw.steps[best] - step)) best = k; });
        other.p = best;
        other.update();
      }
    },
    draw(view, change) { change(); view.update(); },
  };
  const sections = document.querySelectorAll("section.view");
  shared.views = data.views.map((raw, k) => new View(sections[k], raw, shared));
  for (const view of shared.views) view.build();
  const begin = shared.views[0];

  /** #step=12&unit=3&layer=l0_reverse in the address leads there. */
  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const layer = begin.layers.findIndex((l) => l.name === asked.get("layer"));
    if (layer >= 0 && begin.layers[layer] !== begin.layer) begin.setLayer(layer);
    if (asked.has("unit") && begin.layer.place.has(+asked.get("unit"))) begin.unit = +asked.get("unit");
    const step = asked.has("step") ? begin.raw.steps.findIndex((s) => s >= +asked.get("step")) : begin.layer.liveliest();
    shared.go(begin, step < 0 ? begin.P - 1 : step);
  }
  follow();
  addEventListener("hashchange", follow);

  dark.addEventListener("change", () => { for (const view of shared.views) { view.build(); view.update(); } });
  let waiting = 0, wide = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === wide) return; // a phone's address bar came or went
    wide = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => { for (const view of shared.views) { view.paint(); view.update(); } }, 120);
  });

  let active = begin; // the view that the keys move: the one last touched
  shared.views.forEach((view, k) => sections[k].addEventListener("pointerdown", () => (active = view), true));
  shared.views.forEach((view, k) => sections[k].addEventListener("focusin", () => (active = view)));
  addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest?.("select, input, .units, .equation")) {
      if (!event.target.matches?.("input[type=range]") || !["ArrowUp", "ArrowDown", "l", "L"].includes(event.key)) return;
    }
    const { layer } = active, row = layer.place.get(active.unit);
    const to = { ArrowLeft: active.p - 1, ArrowRight: active.p + 1, Home: 0, End: active.P - 1 }[event.key];
    if (to !== undefined) shared.go(active, to);
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      active.unit = layer.order[clamp(row + (event.key === "ArrowUp" ? -1 : 1), 0, layer.units - 1)];
      active.update();
    } else if (event.key === "l" || event.key === "L") active.setLayer((active.layers.indexOf(layer) + 1) % active.layers.length);
    else return;
    event.preventDefault();
  });

  // --- definitions on hover and on focus -----------------------------------------------------------------------

  const note = make("div", { class: "note", role: "tooltip", hidden: "" });
  document.body.append(note);
  let leaving = 0, noted = null; // the word whose definition is shown
  const place = () => {
    const box = noted.getBoundingClientRect(), below = box.bottom + 6 + note.offsetHeight <= innerHeight;
    note.style.left = `${clamp(box.left, 8, Math.max(8, innerWidth - note.offsetWidth - 8))}px`;
    note.style.top = `${Math.max(8, below ? box.bottom + 6 : box.top - note.offsetHeight - 6)}px`;
  };
  const show = (event) => {
    const target = event.target.closest?.("[data-note]");
    if (target || event.target === note) clearTimeout(leaving);
    if (!target) return;
    noted = target;
    note.hidden = false;
    note.textContent = target.dataset.note;
    place();
  };
  const leave = (event) => { // a moment later, so that the pointer can be moved onto the note
    if (event.target !== note && !event.target.closest?.("[data-note]")) return;
    clearTimeout(leaving);
    leaving = setTimeout(() => (note.hidden = true), 200);
  };
  for (const event of ["pointerover", "focusin"]) document.addEventListener(event, show);
  for (const event of ["pointerout", "focusout"]) document.addEventListener(event, leave);
  addEventListener("keydown", (event) => { if (event.key === "Escape" || !noted?.isConnected) note.hidden = true; });
  addEventListener("scroll", () => { if (!note.hidden) place(); }, true); // the focus scrolls its word into view
})();
