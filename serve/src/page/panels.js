// What surrounds the conversation: the two side panels, the colours, and the field that files are dropped on.

import { byId } from './dom.js';

/** Opens or closes the panel `history` or `settings`. The history is always open on a wide screen. */
export function setOpen(name, open) {
  byId(name).classList.toggle('open', open);
  byId(`open-${name}`).setAttribute('aria-expanded', open);
  if (name === 'settings') byId(name).inert = !open;
}

const isOpen = (name) => byId(name).classList.contains('open');

/** Closes the panel that is open. */
export function closePanel() {
  setOpen(isOpen('settings') ? 'settings' : 'history', false);
}

/** Takes the next colour scheme of: as the system, light, dark. */
function nextTheme() {
  const root = document.documentElement;
  const order = [undefined, 'light', 'dark'];
  const next = order[(order.indexOf(root.dataset.theme) + 1) % order.length];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  try {
    localStorage.setItem('reel.theme', next ?? '');
  } catch {
    // Without storage the choice lasts as long as the page.
  }
  labelTheme();
}

function labelTheme() {
  const label = `Colours: ${document.documentElement.dataset.theme ?? 'as the system'}`;
  byId('theme').title = label;
  byId('theme').setAttribute('aria-label', label);
}

/** Connects the buttons of panels and colours. */
export function connectPanels() {
  for (const name of ['settings', 'history']) {
    byId(`open-${name}`).addEventListener('click', () => setOpen(name, !isOpen(name)));
  }
  byId('close-settings').addEventListener('click', () => {
    setOpen('settings', false);
    byId('open-settings').focus();
  });
  byId('main').addEventListener('pointerdown', () => setOpen('history', false));
  byId('theme').addEventListener('click', nextTheme);
  labelTheme();
}

/** Calls `onFiles(files)` for files that are dropped on the page or pasted into it. */
export function connectFiles(onFiles) {
  const onDrag = (event) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    byId('drop').hidden = event.type === 'drop' || (event.type === 'dragleave' && event.relatedTarget === null);
    if (event.type === 'drop') onFiles(event.dataTransfer.files);
  };
  for (const event of ['dragenter', 'dragover', 'dragleave', 'drop']) document.addEventListener(event, onDrag);
  document.addEventListener('paste', (event) => {
    if (event.clipboardData.files.length === 0) return;
    event.preventDefault();
    onFiles(event.clipboardData.files);
  });
}
