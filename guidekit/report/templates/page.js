"use strict";
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const say = (text) => { $("#said").textContent = text; };
for (const part of $$(".scripted")) part.hidden = false;

// light and dark
const theme = $("#theme");
const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const named = () => { theme.textContent = dark() ? "light" : "dark"; theme.setAttribute("aria-label", `switch to ${theme.textContent} colours`); };
try { const kept = localStorage.getItem("guidekit-theme"); if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept; } catch { /* no storage */ }
theme.hidden = false;
named();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", named);
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  try { localStorage.setItem("guidekit-theme", document.documentElement.dataset.theme); } catch { /* no storage */ }
  named();
});

// the section that is read
const links = new Map($$("nav a").map((a) => [a.hash.slice(1), a]));
const mark = () => {
  const read = $$("main section").filter((s) => s.getBoundingClientRect().top < Math.min(innerHeight * 0.35, 220)).pop() || $("main section");
  if (links.get(read.id).hasAttribute("aria-current")) return;
  for (const [id, a] of links) if (id === read.id) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current");
  $("nav ul").scrollLeft = links.get(read.id).offsetLeft - 40;
};
addEventListener("scroll", mark, { passive: true });
mark();

// copies
async function copied(text) {
  try { await navigator.clipboard.writeText(text); return true; } catch { /* the old way */ }
  const area = document.body.appendChild(document.createElement("textarea"));
  area.className = "sr aside";
  area.value = text;
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
const source = (button) => button.dataset.from ? document.getElementById(button.dataset.from) : $("[title].cut, [title].clip", button.closest(".card, li, td"));
document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  const shown = source(button);
  const done = await copied(button.dataset.copy ?? (shown.title || shown.textContent));
  button.textContent = done ? "copied" : "Ctrl+C";
  say(done ? "copied" : "selected; copy it with Ctrl+C");
  if (done) button.focus(); else { shown.classList.add("open"); getSelection().selectAllChildren(shown); }
  setTimeout(() => { button.textContent = "copy"; }, 1500);
});

// boxes that scroll sideways say so
for (const frame of $$(".frame")) {
  const box = $(".scroll", frame);
  const look = () => {
    const over = box.scrollWidth - box.clientWidth;
    $(".hint", frame).hidden = over <= 1;
    frame.classList.toggle("before", box.scrollLeft > 1);
    frame.classList.toggle("after", box.scrollLeft < over - 1);
  };
  box.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(box);
  look();
}

// the table
const value = ({ cells }, i) => cells[i].dataset.v === undefined ? ($(".clip", cells[i]) ?? cells[i]).textContent : Number(cells[i].dataset.v);
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return Number.isNaN(a) ? (Number.isNaN(b) ? 0 : NaN) : Number.isNaN(b) ? NaN : a - b;
  return String(a).localeCompare(String(b));
}
for (const table of $$("table.sortable")) {
  $$("th", table).forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      $$("th", table).forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = $$("tbody tr", table).map((row) => [value(row, i), row]);
      rows.sort(([a], [b]) => {
        const order = compare(a, b);
        if (Number.isNaN(order)) return Number.isNaN(a) ? 1 : -1; // those without a number come last
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
      say(`sorted by ${button.textContent}, ${head.getAttribute("aria-sort")}`);
    });
  });
}

// enlarged images
const large = $("#large");
const zooms = $$(".zoom");
let at = 0;
function show(i) {
  at = (i + zooms.length) % zooms.length;
  const card = zooms[at].closest(".card");
  $("img", large).src = $("img", card).src;
  $("img", large).alt = $("img", card).alt;
  $("p", large).textContent = $(".line1", card).innerText.replace(/\s+/g, " ");
}
zooms.forEach((button, i) => button.addEventListener("click", () => { show(i); large.showModal(); }));
$(".close", large).addEventListener("click", () => large.close());
large.addEventListener("click", (event) => {
  if (event.target === large) large.close();
  const turn = event.target.closest("[data-turn]");
  if (turn) show(at + Number(turn.dataset.turn));
});
large.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(at + 1);
  if (event.key === "ArrowLeft") show(at - 1);
});
large.addEventListener("close", () => zooms[at].focus());

// the lineage
const survivors = $$(".survivor");
const who = $("#who");
const over = document.createElementNS("http://www.w3.org/2000/svg", "path"); // the chosen line lies on top
over.setAttribute("class", "lit");
function choose(i) {
  survivors.forEach((s, k) => { s.classList.toggle("on", k === i); s.setAttribute("tabindex", k === i ? 0 : -1); });
  const chosen = survivors[i];
  over.setAttribute("d", $(".line", chosen).getAttribute("d"));
  chosen.parentNode.append(over);
  if (!who) return;
  who.selectedIndex = i;
  $("#way").replaceChildren(...chosen.dataset.nodes.split(" ").filter(Boolean).map((id) => {
    const copy = document.getElementById(id).cloneNode(true);
    copy.removeAttribute("id");
    return copy;
  }));
}
survivors.forEach((s, i) => {
  s.addEventListener("pointerenter", () => choose(i));
  s.addEventListener("focus", () => choose(i));
  s.addEventListener("click", () => choose(i));
  s.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    survivors[(i + step + survivors.length) % survivors.length].focus();
  });
});
if (who) who.addEventListener("change", () => choose(who.selectedIndex));
if (survivors.length) choose(0);
