"""What is wrong with the layout of a page, from the boxes of its texts and elements in a browser."""

from __future__ import annotations

from tests.support.browser import Page

SCRIPT = r"""(() => {
  const found = [], boxes = [], near = 1.5;
  const said = (one) => one.textContent.replace(/\s+/g, " ").trim().slice(0, 60);
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const node = words.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("svg, style") || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const lines = [...range.getClientRects()].filter((one) => one.width > 0);
    let block = parent;
    while (getComputedStyle(block).display.startsWith("inline")) block = block.parentElement;
    const room = block.getBoundingClientRect();
    if (lines.some((one) => one.right > room.right + near || one.left < room.left - near))
      found.push(`text leaves its box: ${said(node)}`);
    if (!parent.closest(".scroll")) boxes.push(...lines.map((box) => ({box, node})));
  }
  for (const one of document.querySelectorAll("body *")) {
    const style = getComputedStyle(one), wide = one.scrollWidth > one.clientWidth + near;
    if (!one.clientWidth || !wide || one.closest("svg")) continue;
    if (["hidden", "clip"].includes(style.overflowX)) found.push(`text is cut: ${said(one)}`);
    if (["auto", "scroll"].includes(style.overflowX) && one.tabIndex < 0)
      found.push(`the keyboard does not reach a scrolled region: ${said(one)}`);
  }
  for (const figure of document.querySelectorAll("svg")) {
    if (!figure.checkVisibility()) continue;
    const room = figure.getBoundingClientRect();
    for (const node of figure.querySelectorAll("text")) {
      const box = node.getBoundingClientRect();
      if (box.right > room.right + near || box.left < room.left - near
          || box.top < room.top - near || box.bottom > room.bottom + near)
        found.push(`text leaves its figure: ${said(node)} (${said(figure)})`);
      boxes.push({box, node});
    }
  }
  boxes.sort((one, other) => one.box.top - other.box.top);
  boxes.forEach(({box, node}, place) => {
    for (let next = place + 1; next < boxes.length; next++) {
      const other = boxes[next];
      if (other.box.top > box.bottom - 3) break;
      const wide = Math.min(box.right, other.box.right) - Math.max(box.left, other.box.left);
      if (wide > near && other.node !== node) 
        found.push(`texts overlap: ${said(node)} / ${said(other.node)}`);
    }
  });
  return found;
})()"""


def problems(page: Page) -> list[str]:
    """Text that is cut, leaves its box or lies over other text, and what the keyboard or the width lacks."""
    found: list[str] = page.run(SCRIPT)
    return page.overflow() + found


def unfold(page: Page) -> None:
    """Open everything that is folded."""
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
