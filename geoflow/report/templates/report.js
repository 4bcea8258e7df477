"use strict";
// Figures: a click, Enter or the space bar shows one as large as the window; Escape goes back.
for (const image of document.querySelectorAll("figure img")) {
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.title = "Enlarge";
  const enlarge = () => {
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-label", image.alt);
    const large = new Image();
    large.src = image.src;
    large.alt = image.alt;
    const close = document.createElement("button");
    close.textContent = "Close";
    dialog.append(close, large);
    document.body.append(dialog);
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => { dialog.remove(); image.focus(); });
    dialog.showModal();
  };
  image.addEventListener("click", enlarge);
  image.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); enlarge(); }
  });
}
// Tables: a column's head sorts by it, up, down, and as it was written; the button copies all.
const number = (text) => {
  const found = text.replaceAll("−", "-").replaceAll(",", "").match(/-?\d+\.?\d*(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : NaN;
};
const before = (a, b) => {
  const x = number(a), y = number(b);
  if (Number.isNaN(x) || Number.isNaN(y)) {
    return Number.isNaN(x) - Number.isNaN(y) || a.localeCompare(b);
  }
  return x - y || a.localeCompare(b);
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], written = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent || "name";
    button.className = head.textContent ? "" : "unnamed";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" };
      const order = next[head.getAttribute("aria-sort") || "none"];
      for (const other of heads) other.removeAttribute("aria-sort");
      const rows = [...written];
      if (order !== "none") {
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const cell = (row) => row.cells[column].textContent;
        rows.sort((a, b) => sign * before(cell(a), cell(b)));
      }
      body.append(...rows);
    });
  });
  const copy = document.createElement("button");
  copy.className = "copy";
  copy.textContent = "Copy table";
  copy.addEventListener("click", async () => {
    const lines = [...table.rows].map((row) => [...row.cells].map((c) => c.textContent).join("\t"));
    const text = lines.join("\n") + "\n";
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Where the page is a file, some browsers have the older way only.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy table"; }, 1500);
  });
  table.parentNode.after(copy);
}
