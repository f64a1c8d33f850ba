// What the page does beyond plain forms: time, keys, drafts of comments, focus. It works without all of this.
"use strict";

const byId = (id) => document.getElementById(id);
const answer = byId("answer");
const undo = byId("undo");
const sentForms = new WeakSet();

// Session storage may be switched off in the browser; then nothing is carried over a reload.
const stored = (area, name) => { try { return area().getItem(name) ?? ""; } catch { return ""; } };
const keep = (area, name, value) => { try { area().setItem(name, value); } catch { /* see above */ } };
const session = () => window.sessionStorage;
const local = () => window.localStorage;

function arrive() {
  const url = new URL(location.href);
  if (url.search) history.replaceState(null, "", url.pathname);
  const note = byId("note");
  byId("title").focus({ preventScroll: true });
  if (note && note.textContent) {
    // Screen readers speak of a status only when it changes after the page is there.
    const text = note.textContent;
    note.textContent = "";
    requestAnimationFrame(() => { note.textContent = text; });
  }
}

// A form is sent once; the browser's Back button may bring it to life again.
function sendOnce(form) {
  form.addEventListener("submit", (event) => {
    if (sentForms.has(form)) event.preventDefault();
    sentForms.add(form);
  });
  window.addEventListener("pageshow", () => sentForms.delete(form));
}

// Seconds for which the item was in sight, counted on over a reload.
function timeItem(item) {
  const name = `seconds of ${item}`;
  let seconds = Number(stored(session, name)) || 0;
  let since = document.hidden ? null : performance.now();
  const total = () => seconds + (since === null ? 0 : (performance.now() - since) / 1000);
  const pause = () => {
    seconds = total();
    since = document.hidden ? null : performance.now();
    keep(session, name, seconds.toFixed(3));
  };
  document.addEventListener("visibilitychange", pause);
  window.addEventListener("pagehide", pause);
  answer.addEventListener("submit", () => { answer.elements.seconds.value = total().toFixed(3); });
}

// A comment that was begun is there again after a reload, or where the server was away for a moment.
function keepDraft(item) {
  const name = `comment on ${item}`;
  const comment = byId("comment");
  const draft = stored(session, name);
  if (draft && !comment.value) comment.value = draft;
  comment.addEventListener("input", () => keep(session, name, comment.value));
}

// Undo opens an item again, whose time and comment then begin with what the server says.
function forgetOthers(item) {
  try {
    for (const name of Object.keys(sessionStorage)) if (!name.endsWith(` ${item}`)) sessionStorage.removeItem(name);
  } catch { /* see above */ }
}

function press(button) {
  if (button) button.click();
}

function moveAlong(step) {
  const buttons = [...document.querySelectorAll("#scale button")];
  const at = buttons.indexOf(document.activeElement);
  const start = step > 0 ? buttons.length / 2 : buttons.length / 2 - 1;
  const next = at < 0 ? start : Math.min(Math.max(at + step, 0), buttons.length - 1);
  buttons[next].focus();
}

function onKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.repeat && /^\w$/.test(event.key)) return;
  if (event.isComposing || event.target.closest("textarea, input, select, [contenteditable]")) return;
  const switched = byId("shortcuts");
  if (switched && !switched.checked) return;
  const key = event.key.toLowerCase();
  if (answer && (key === "arrowleft" || key === "arrowright")) moveAlong(key === "arrowleft" ? -1 : 1);
  else if (answer && /^[1-9]$/.test(key)) press(document.querySelector(`#scale button[value="${key}"]`));
  else if (answer && key === "b") press(document.querySelector('button[value="both_bad"]'));
  else if (answer && key === "s") press(document.querySelector('button[value="skipped"]'));
  else if (undo && key === "u") press(document.querySelector('button[aria-keyshortcuts="u"]'));
  else return;
  event.preventDefault();
}

// Single keys can disturb those who speak to their computer, so they can be switched off (WCAG 2.1.4).
function offerKeys() {
  const switched = byId("shortcuts");
  byId("keys").hidden = false;
  switched.checked = stored(local, "shortcuts") !== "off";
  const apply = () => document.body.classList.toggle("no-keys", !switched.checked);
  switched.addEventListener("change", () => {
    keep(local, "shortcuts", switched.checked ? "on" : "off");
    apply();
  });
  apply();
}

// Guidelines that were opened or closed stay so on the next page.
function keepOpen(details) {
  details.open = stored(local, details.id) === "open";
  details.addEventListener("toggle", () => keep(local, details.id, details.open ? "open" : "closed"));
}

arrive();
document.body.classList.add("js");
if (undo) sendOnce(undo);
if (answer) {
  const item = answer.dataset.item;
  forgetOthers(item);
  sendOnce(answer);
  timeItem(item);
  keepDraft(item);
  offerKeys();
  keepOpen(byId("guidelines"));
}
document.addEventListener("keydown", onKey);
