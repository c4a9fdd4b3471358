"use strict";
// Switches of scales and series, values under the pointer or the arrow keys, and the inputs' images.
const read = JSON.parse(document.getElementById("data").textContent);
const say = (value) => value === null ? "–" : String(Number(value.toPrecision(5))).replace("-", "−");

// Where a value lies on an axis: matplotlib's symlog is linear within ± threshold, which takes as much room as a
// decade and a ninth.
function place(axis, value) {
  const along = (v) => {
    if (axis.scale === "log") return v > 0 ? Math.log10(v) : -Infinity;
    if (axis.scale !== "symlog") return v;
    const size = Math.abs(v) / axis.threshold;
    return Math.sign(v) * (size <= 1 ? size / 0.9 : 1 / 0.9 + Math.log10(size));
  };
  const [low, high] = axis.limits.map(along);
  const share = Math.min(Math.max((along(value) - low) / (high - low), -0.05), 1.05);
  return axis.at[0] + share * (axis.at[1] - axis.at[0]);
}

function inside(axis, at) {
  const [a, b] = [Math.min(...axis.at), Math.max(...axis.at)];
  return at >= a - 2 && at <= b + 2;
}

// All points of a panel that are shown, where they lie in the picture, in the order of the arrow keys.
function points(panel, geometry, hidden) {
  const found = [];
  panel.series.forEach((series, k) => {
    if (hidden.has(k)) return;
    series.x.forEach((x, i) => {
      const y = series.y[i];
      if (x === null || y === null) return;
      const [across, up] = panel.sideways ? [y, x] : [x, y];
      const at = [place(geometry.x, across), place(geometry.y, up)];
      if (inside(geometry.x, at[0])) found.push({at, text: describe(panel, series, i)});
    });
  });
  if (panel.mesh && !panel.series.length) {
    const {x, y, z} = panel.mesh;
    const middle = (places, n, i) => places.length > n ? (places[i] + places[i + 1]) / 2 : places[i];
    z.forEach((row, j) => row.forEach((value, i) => {
      const px = middle(x, row.length, i), py = middle(y, z.length, j);
      const name = (names, at) => names[Math.round(at)] ?? say(at);
      found.push({
        at: [place(geometry.x, px), place(geometry.y, py)],
        text: `${panel.mesh.label} ${say(value)}\n${panel.x || "x"} ${name(panel.mesh.xNames, px)}, ` +
          `${panel.y || "y"} ${name(panel.mesh.yNames, py)}`,
      });
    }));
    return found;
  }
  return found.sort((one, other) => panel.sideways ? one.at[1] - other.at[1] : one.at[0] - other.at[0]);
}

function describe(panel, series, i) {
  const name = panel.names.length ? panel.names[Math.round(series.x[i])] : `${panel.x || "x"} ${say(series.x[i])}`;
  const interval = series.low ? ` in [${say(series.low[i])}, ${say(series.high[i])}]` : "";
  const note = series.notes && series.notes[i] ? `\n${series.notes[i]}` : "";
  return `${series.name}\n${name}: ${say(series.y[i])}${interval}${note}`;
}

document.querySelectorAll("section.panel").forEach((section) => {
  const panel = read[Number(section.id.split("-")[1])];
  const picture = section.querySelector(".picture"), tip = section.querySelector(".tip");
  const said = section.querySelector(".said"), variants = [...picture.querySelectorAll("svg")];
  const hidden = new Set();
  let current = -1, shown = variants[0], cache = null;

  const all = () => cache ??= points(panel, JSON.parse(shown.dataset.geometry), hidden);
  const clear = () => {
    tip.hidden = true;
    section.querySelectorAll(".mark").forEach((mark) => mark.remove());
  };

  function show(index) {
    const one = all()[index];
    clear();
    if (!one) return;
    current = index;
    const mark = document.createElementNS(shown.namespaceURI, "circle");
    mark.setAttribute("class", "mark");
    mark.setAttribute("cx", one.at[0]);
    mark.setAttribute("cy", one.at[1]);
    mark.setAttribute("r", 5);
    shown.append(mark);
    const box = shown.viewBox.baseVal, scale = picture.clientWidth / box.width;
    tip.textContent = one.text;
    tip.hidden = false;
    const left = one.at[0] * scale, top = one.at[1] * scale;
    tip.style.left = `${Math.max(0, Math.min(left + 12, picture.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, top - tip.offsetHeight - 10)}px`;
  }

  function choose() {
    const wanted = {x: shown.dataset.x, y: shown.dataset.y};
    section.querySelectorAll("button.scale").forEach((button) => {
      const axis = button.dataset.axis;
      const scales = [...new Set(variants.map((one) => one.dataset[axis]))];
      wanted[axis] = scales[button.getAttribute("aria-pressed") === "true" ? 1 : 0];
      const names = {linear: "linear", log: "logarithmic", symlog: "logarithmic beyond the middle"};
      button.textContent = `${axis}: ${names[wanted[axis]]}`;
    });
    clear();
    variants.forEach((one) => one.classList.add("hidden"));
    shown = variants.find((one) => one.dataset.x === wanted.x && one.dataset.y === wanted.y);
    shown.classList.remove("hidden");
    cache = null;
  }

  section.querySelectorAll("button.scale").forEach((button) => button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    choose();
  }));
  section.querySelectorAll("button.series").forEach((button) => button.addEventListener("click", () => {
    const k = Number(button.dataset.series), visible = hidden.has(k);
    visible ? hidden.delete(k) : hidden.add(k);
    button.setAttribute("aria-pressed", String(visible));
    picture.querySelectorAll(`.series-${k}`).forEach((one) => one.classList.toggle("hidden", !visible));
    cache = null;
    clear();
  }));

  picture.addEventListener("pointermove", (event) => {
    const box = shown.getBoundingClientRect(), scale = shown.viewBox.baseVal.width / box.width;
    const at = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best = -1, least = 40 * 40;
    all().forEach((one, index) => {
      const distance = (one.at[0] - at[0]) ** 2 + (one.at[1] - at[1]) ** 2;
      if (distance < least) [best, least] = [index, distance];
    });
    best < 0 ? clear() : show(best);
  });
  picture.addEventListener("pointerleave", clear);
  picture.addEventListener("blur", clear);
  picture.addEventListener("keydown", (event) => {
    const steps = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10};
    const last = all().length - 1;
    if (event.key === "Escape") return clear();
    let next = steps[event.key] ? current + steps[event.key] : event.key === "Home" ? 0 : event.key === "End" ? last : null;
    if (next === null || last < 0) return;
    event.preventDefault();
    show(Math.min(Math.max(next, 0), last));
    said.textContent = all()[current].text.replaceAll("\n", ", ");
  });

  // The table is made when it is asked for: a thousand rows more are no burden to a page that nobody unfolds.
  section.querySelector("details").addEventListener("toggle", (event) => {
    const target = section.querySelector(".values");
    if (!event.target.open || target.firstChild) return;
    const table = document.createElement("table");
    const row = (cells, tag) => {
      const line = table.insertRow();
      cells.forEach((text) => {
        const cell = document.createElement(tag);
        cell.textContent = text;
        line.append(cell);
      });
    };
    if (panel.mesh) {
      const names = (list, places, n) => Array.from({length: n}, (_, i) => list[i] ?? say(places[i]));
      const width = panel.mesh.z[0].length;
      row([panel.mesh.label, ...names(panel.mesh.xNames, panel.mesh.x, width)], "th");
      const rows = names(panel.mesh.yNames, panel.mesh.y, panel.mesh.z.length);
      panel.mesh.z.forEach((values, j) => row([rows[j], ...values.map(say)], "td"));
    }
    if (panel.series.length) row(["series", panel.x || "name", panel.y, "low", "high", ""], "th");
    panel.series.forEach((series) => series.x.forEach((x, i) => row([
      series.name, panel.names.length ? panel.names[Math.round(x)] : say(x), say(series.y[i]),
      series.low ? say(series.low[i]) : "", series.high ? say(series.high[i]) : "", series.notes ? series.notes[i] : "",
    ], "td")));
    target.append(table);
  });
});

document.querySelectorAll("canvas").forEach((canvas) => {
  const channels = Number(canvas.dataset.channels), hex = canvas.dataset.pixels;
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < canvas.width * canvas.height; i++) {
    for (let c = 0; c < 3; c++) {
      const from = 2 * (channels === 3 ? 3 * i + c : i);
      image.data[4 * i + c] = parseInt(hex.slice(from, from + 2), 16);
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
});

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = getComputedStyle(root).colorScheme === "dark";
  root.dataset.theme = dark ? "light" : "dark";
});

document.getElementById("save").addEventListener("click", () => {
  const lines = [...document.querySelectorAll("script.report")].map((one) => one.textContent.trim());
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], {type: "application/json"}));
  link.download = lines.length > 1 ? "reports.jsonl" : "report.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
