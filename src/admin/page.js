"use strict";
// Every few seconds the page is fetched again and its live parts are put in place of the old ones, so that the search
// text, the focus and the scroll position stay. The server does the searching, with and without this script.
const PAUSE_MS = 3000;
const PATIENCE_MS = 5000;
const input = document.querySelector("#search input");
let latest = 0;
let timer;

async function refresh() {
  clearTimeout(timer);
  const turn = ++latest;
  try {
    const answer = await fetch(location.href, { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error(answer.status);
    // Its style has another nonce than this page, whose policy would complain of it.
    const text = (await answer.text()).replace(/<style[^]*<\/style>/, "");
    const fresh = new DOMParser().parseFromString(text, "text/html");
    if (turn !== latest) return;
    for (const part of document.querySelectorAll(".live")) {
      const other = fresh.getElementById(part.id);
      // What somebody has opened or closed stays so.
      for (const fold of part.querySelectorAll("details[data-chosen]")) {
        const same = other.querySelector(`#${fold.id}`);
        if (same) same.open = fold.open, same.dataset.chosen = "";
      }
      if (part.innerHTML !== other.innerHTML) part.innerHTML = other.innerHTML;
      if (part.className !== other.className) part.className = other.className;
    }
    document.title = fresh.title;
    document.getElementById("icon").href = fresh.getElementById("icon").href;
    document.body.classList.remove("lost");
  } catch {
    if (turn !== latest) return;
    if (!document.body.classList.contains("lost")) {
      document.body.classList.add("lost");
      document.getElementById("age").textContent = `no answer since ${new Date().toLocaleTimeString()}`;
    }
  }
  timer = setTimeout(refresh, PAUSE_MS);
}

function search() {
  const query = input.value.trim();
  history.replaceState(null, "", query ? `/?q=${encodeURIComponent(query)}` : "/");
  clearTimeout(timer);
  timer = setTimeout(refresh, 150);
}

document.addEventListener("click", (event) => {
  const fold = event.target.closest("summary")?.parentElement;
  if (fold) fold.dataset.chosen = "";
});
input.addEventListener("input", search);
document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else refresh();
});
timer = setTimeout(refresh, PAUSE_MS);
