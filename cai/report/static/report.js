"use strict";
(() => {
  const folded = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...folded()];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
    opened = [];
  });

  const form = document.getElementById("filters");
  if (!form) return;
  const all = [...document.querySelectorAll(".transcript")];
  const texts = new Map();
  const text = (one) => {
    if (!texts.has(one)) texts.set(one, one.textContent.toLowerCase());
    return texts.get(one);
  };
  const wanted = (name) => form.elements[name]?.value ?? "";
  const filter = () => {
    const [run, topic, principle, words] = ["run", "topic", "principles", "text"].map(wanted);
    const sought = words.trim().toLowerCase();
    let found = 0;
    for (const one of all) {
      const fits =
        (!run || one.dataset.run === run) &&
        (!topic || one.dataset.topic === topic) &&
        (!principle || one.dataset.principles.split("\n").includes(principle)) &&
        (!sought || text(one).includes(sought));
      one.hidden = !fits;
      found += fits;
    }
    document.getElementById("found").textContent =
      found === all.length ? `${found} transcripts` : `${found} of ${all.length} transcripts`;
  };
  for (const kind of ["input", "change"]) form.addEventListener(kind, filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter(); // the browser may have kept what was chosen before a reload
})();
