"use strict";
(() => {
  const scenes = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const PERIOD = 450;
  const state = { scene: 0, film: 0, step: 0, shade: "entropy", picked: null, timer: null };

  const scene = () => scenes[state.scene];
  const film = () => scene().films[state.film];
  const sum = (numbers) => numbers.reduce((total, x) => total + (x ?? 0), 0);

  /** An element with attributes and text; text is never markup. */
  function element(name, attributes = {}, text = "", space = null) {
    const made = space ? document.createElementNS(space, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== "") made.textContent = text;
    return made;
  }

  /** The canvas before a step: a label per position, null where it is masked. */
  function canvasBefore(shown, step) {
    const canvas = [...scene().start];
    for (const record of shown.steps.slice(0, step)) {
      record.revealed.forEach((position, k) => { canvas[position] = record.tokens[k]; });
      record.remasked.forEach((position) => { canvas[position] = null; });
    }
    return canvas;
  }

  /** A row per masked position of a step, highest score first. */
  function rowsOf(record) {
    const rows = record.positions.map((position, k) => {
      const parts = {};
      for (const [name, values] of Object.entries(record.parts)) parts[name] = values[k];
      const index = record.revealed.indexOf(position);
      return {
        position, entropy: record.entropy[k], score: record.scores[k], parts,
        token: index < 0 ? null : record.tokens[index],
      };
    });
    const rank = (row) => (row.score === null ? -Infinity : row.score);
    return rows.sort((a, b) => rank(b) - rank(a) || a.position - b.position);
  }

  const number = (x) => {
    if (x === null || x === undefined) return "–";
    if (typeof x === "boolean") return x ? "yes" : "";
    return Number.isInteger(x) ? `${x}` : x.toPrecision(3);
  };
  /** Where a position is: a row and column of a grid, from 1, or a place in the text, from 0. */
  const place = (position) => {
    const { columns } = scene();
    return columns ? `r${Math.floor(position / columns) + 1} c${position % columns + 1}` : `${position}`;
  };
  const visible = (label) => (label === " " ? "␣" : label === "\n" ? "↵" : label);

  function shadeOf(rows) {
    const value = (row) => (state.shade === "entropy" ? row.entropy
      : state.shade === "score" ? row.score : row.parts[state.shade]);
    const known = rows.map(value).filter((x) => x !== null && x !== undefined);
    const low = Math.min(...known, 0);
    const high = Math.max(...known);
    return (row) => {
      const x = value(row);
      if (x === null || x === undefined || high <= low) return 0;
      return (x - low) / (high - low);
    };
  }

  function drawBoard() {
    const board = at("board");
    const { columns, truth } = scene();
    const shown = film();
    const record = shown.steps[state.step];
    const before = canvasBefore(shown, state.step);
    const rows = record ? rowsOf(record) : [];
    const byPosition = new Map(rows.map((row) => [row.position, row]));
    const shade = shadeOf(rows);
    const wrong = new Map(shown.mistakes.map((mistake) => [mistake.position, mistake]));
    const taken = new Set(record ? record.remasked : []);
    board.replaceChildren();
    board.className = columns ? "grid" : "text";
    board.style.gridTemplateColumns = columns ? `repeat(${columns}, 1fr)` : "";
    before.forEach((label, position) => {
      const row = byPosition.get(position);
      const fresh = row && row.token !== null;
      const text = fresh ? row.token : label;
      const kinds = ["cell"];
      if (scene().start[position] !== null) kinds.push("given");
      else if (label !== null) kinds.push("written");
      if (fresh) kinds.push("fresh");
      if (taken.has(position)) kinds.push("taken");
      if (row && row.parts.candidate) kinds.push("candidate");
      const mistake = wrong.get(position);
      if (mistake && text !== null && mistake.step <= state.step) kinds.push("wrong");
      if (state.picked === position) kinds.push("picked");
      if (columns && position % 3 === 2 && (position + 1) % columns) kinds.push("right-edge");
      if (columns && Math.floor(position / columns) % 3 === 2 && position < columns * (columns - 1)) {
        kinds.push("bottom-edge");
      }
      const cell = element("span", { class: kinds.join(" ") }, text === null ? "\u00a0" : visible(text));
      if (row) {
        cell.style.backgroundColor = `rgba(var(--shade), ${(0.75 * shade(row)).toFixed(3)})`;
        const parts = Object.entries(row.parts).map(([name, x]) => `${name} ${number(x)}`);
        cell.title = [`position ${place(position)}`, `H ${number(row.entropy)}`, `score ${number(row.score)}`, ...parts].join("\n");
      } else {
        cell.title = `position ${place(position)}`;
      }
      if (truth && mistake) cell.title += `\nright: ${truth[position]}`;
      cell.addEventListener("click", () => { state.picked = state.picked === position ? null : position; draw(); });
      board.append(cell);
      if (!columns && text === "\n") board.append(element("br"));
    });
    const masks = before.filter((label) => label === null).length;
    board.setAttribute("aria-label", `Canvas before step ${state.step + 1}: ${masks} masks`);
  }

  function drawText() {
    const shown = film();
    const record = shown.steps[state.step];
    const last = shown.steps.length;
    if (!record) {
      const verdict = shown.correct === null ? "" : shown.correct ? " Right." : " Wrong.";
      at("step").textContent = `Done after ${last} steps.${verdict} ${shown.cost}`;
    } else {
      const total = sum(record.entropy);
      const next = shown.steps[state.step + 1];
      const written = record.revealed.map((position, k) => `${visible(record.tokens[k])} at ${place(position)}`);
      let text = `Step ${state.step + 1} of ${last}: ${record.positions.length} masks, ${total.toFixed(2)} nats. `;
      text += `Writes ${written.join(", ") || "nothing"}.`;
      if (record.remasked.length) text += ` Takes back ${record.remasked.map(place).join(", ")}.`;
      if (record.parts.tis) {
        const gain = sum(record.positions.map((p, k) => (record.revealed.includes(p) ? record.parts.tis[k] : 0)));
        text += ` Expected fall of the rest (TIS): ${gain.toFixed(2)} nats.`;
      }
      if (next && !record.remasked.length) {
        const left = new Set(record.revealed);
        const rest = sum(record.positions.map((p, k) => (left.has(p) ? 0 : record.entropy[k])));
        text += ` It fell by ${(rest - sum(next.entropy)).toFixed(2)}.`;
      }
      at("step").textContent = text;
    }
    const first = shown.mistakes[0];
    const { truth, truth_kind: kind } = scene();
    const what = kind === "solution" ? "First mistake that stayed" : "First departure from the reference that stayed";
    at("mistake").textContent = first
      ? `${what}: step ${first.step + 1} wrote ${visible(first.wrote)} at ${place(first.position)}, not ${visible(first.truth)} (${shown.mistakes.length} in the end).`
      : truth && shown.correct ? "No mistake stayed." : "";
    at("error").disabled = !first;
    at("legend").textContent = "Dashed: candidates. Orange: written in this step. Green: written before. Wavy: not the truth."
      + " Click a position to follow it.";
  }

  function drawTable() {
    const record = film().steps[state.step];
    const head = at("table").querySelector("thead");
    const body = at("table").querySelector("tbody");
    head.replaceChildren();
    body.replaceChildren();
    if (!record) return;
    const parts = Object.keys(record.parts);
    const line = element("tr");
    for (const name of ["position", "writes", "H", "score", ...parts]) line.append(element("th", { scope: "col" }, name));
    head.append(line);
    for (const row of rowsOf(record)) {
      const kinds = [row.token === null ? "" : "fresh", row.position === state.picked ? "picked" : ""];
      const made = element("tr", { class: kinds.join(" ").trim() });
      made.append(element("td", {}, place(row.position)));
      made.append(element("td", {}, row.token === null ? "" : visible(row.token)));
      for (const value of [row.entropy, row.score, ...parts.map((name) => row.parts[name])]) {
        made.append(element("td", {}, number(value)));
      }
      body.append(made);
    }
  }

  function drawChart() {
    const chart = at("chart");
    chart.replaceChildren();
    const curves = scene().films.map((shown) => [...shown.steps.map((record) => sum(record.entropy)), 0]);
    const longest = Math.max(...curves.map((curve) => curve.length - 1), 1);
    const highest = Math.max(...curves.flat(), 1e-9);
    const x = (step) => 34 + (476 * step) / longest;
    const y = (value) => 142 - (128 * value) / highest;
    const add = (name, attributes, text = "") => chart.append(element(name, attributes, text, SVG));
    add("line", { x1: 34, x2: 510, y1: 142, y2: 142, stroke: "var(--line)" });
    add("text", { x: 2, y: 18 }, highest.toFixed(1));
    add("text", { x: 2, y: 145 }, "0");
    add("text", { x: 34, y: 162 }, "nats left in the masks, before each step");
    curves.forEach((curve, k) => {
      const points = curve.map((value, step) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      const own = k === state.film;
      add("polyline", {
        points, fill: "none", "stroke-width": own ? 2.5 : 1,
        stroke: own ? "rgb(var(--shade))" : "var(--faint)", "stroke-opacity": own ? 1 : 0.5,
      });
    });
    for (const mistake of film().mistakes) {
      add("text", { x: x(mistake.step) - 4, y: y(curves[state.film][mistake.step]) - 5, style: "fill:var(--wrong)" }, "✗");
    }
    add("line", { x1: x(state.step), x2: x(state.step), y1: 8, y2: 142, stroke: "var(--ink)", "stroke-dasharray": "3 3" });
  }

  function drawChoices() {
    at("title").textContent = scene().title;
    at("scene-choice").hidden = scenes.length < 2;
    at("films").replaceChildren(...scene().films.map((shown, k) => {
      const mark = shown.correct === null ? "" : shown.correct ? " ✓" : " ✗";
      const button = element("button", {
        type: "button", role: "tab", "aria-selected": `${k === state.film}`, title: shown.cost,
      }, `${shown.sampler}, ${shown.setting}${mark}`);
      button.addEventListener("click", () => choose(k));
      return button;
    }));
    const names = new Set(["entropy", "score"]);
    for (const record of film().steps) for (const name of Object.keys(record.parts)) names.add(name);
    if (!names.has(state.shade)) state.shade = "entropy";
    at("shade").replaceChildren(...[...names].map((name) => {
      const option = element("option", { value: name }, name);
      option.selected = name === state.shade;
      return option;
    }));
  }

  function draw() {
    const last = film().steps.length;
    state.step = Math.max(0, Math.min(state.step, last));
    at("slider").max = `${last}`;
    at("slider").value = `${state.step}`;
    at("slider").setAttribute("aria-valuetext", `step ${state.step} of ${last}`);
    drawBoard();
    drawText();
    drawTable();
    drawChart();
  }

  function go(step) { state.step = step; draw(); }
  function choose(k) {
    if (k < scene().films.length) { state.film = k; drawChoices(); draw(); }
  }
  function pause() {
    clearInterval(state.timer);
    state.timer = null;
    at("play").textContent = "▶▶";
    at("play").setAttribute("aria-label", "Play");
  }
  function play() {
    if (state.timer !== null) { pause(); return; }
    if (state.step >= film().steps.length) go(0);
    at("play").textContent = "❚❚";
    at("play").setAttribute("aria-label", "Pause");
    state.timer = setInterval(() => {
      if (state.step >= film().steps.length) pause();
      else go(state.step + 1);
    }, PERIOD);
  }
  function mistake() {
    const first = film().mistakes[0];
    if (first) { pause(); go(first.step); }
  }

  const keys = {
    ArrowLeft: () => { pause(); go(state.step - 1); },
    ArrowRight: () => { pause(); go(state.step + 1); },
    Home: () => { pause(); go(0); },
    End: () => { pause(); go(film().steps.length); },
    " ": play,
    e: mistake,
  };
  at("first").addEventListener("click", keys.Home);
  at("back").addEventListener("click", keys.ArrowLeft);
  at("play").addEventListener("click", play);
  at("forward").addEventListener("click", keys.ArrowRight);
  at("last").addEventListener("click", keys.End);
  at("error").addEventListener("click", mistake);
  at("slider").addEventListener("input", (event) => { pause(); go(Number(event.target.value)); });
  at("shade").addEventListener("change", (event) => { state.shade = event.target.value; draw(); });
  at("scenes").addEventListener("change", (event) => {
    pause();
    Object.assign(state, { scene: Number(event.target.value), film: 0, step: 0, picked: null });
    drawChoices();
    draw();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    if (event.key === " " && event.target.tagName === "BUTTON") return;
    const action = keys[event.key] ?? (/^[1-9]$/.test(event.key) ? () => choose(Number(event.key) - 1) : null);
    if (action) { event.preventDefault(); action(); }
  });

  at("scenes").replaceChildren(...scenes.map((one, k) => element("option", { value: k }, one.title)));
  drawChoices();
  draw();
})();
