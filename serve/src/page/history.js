// The list of stored conversations.

import { byId, icon, make } from './dom.js';
import * as store from './store.js';

/** Time in which a second click on Delete all counts, in milliseconds. */
const CONFIRM_TIME = 3000;

let actions = { open: () => {}, remove: () => {} };

/** Shows all stored conversations and marks the one with the id `current`. */
export async function showHistory(current) {
  const list = await store.conversations();
  byId('conversations').replaceChildren(
    ...list.map((one) => {
      const open = make('button', { className: 'open', textContent: one.title, title: one.title });
      open.addEventListener('click', () => actions.open(one));
      const remove = make('button', { className: 'icon', 'aria-label': `Delete ${one.title}`, title: 'Delete' });
      remove.append(icon('M6 6l8 8M14 6l-8 8'));
      remove.addEventListener('click', () => actions.remove(one));
      return make('li', { 'data-id': one.id }, open, remove);
    }),
  );
  byId('clear').hidden = list.length === 0;
  markCurrent(current);
}

/** Marks the conversation with this id. */
export function markCurrent(current) {
  for (const item of byId('conversations').children) {
    if (item.dataset.id === current) item.setAttribute('aria-current', 'true');
    else item.removeAttribute('aria-current');
  }
}

/** Waits for a change of the store; says so if it fails (a full disk, for example). */
export async function keep(change) {
  try {
    await change;
  } catch (error) {
    byId('store-note').textContent = `Conversations cannot be stored: ${error.message}`;
  }
}

/** Connects the list: `open(conversation)`, `remove(conversation)`, `create()` and `clear()`. */
export function connectHistory(handlers) {
  actions = handlers;
  byId('new').addEventListener('click', handlers.create);
  let confirming = null;
  byId('clear').addEventListener('click', () => {
    const isSecond = confirming !== null;
    clearTimeout(confirming);
    const reset = () => {
      byId('clear').textContent = 'Delete all';
      confirming = null;
    };
    if (isSecond) {
      reset();
      handlers.clear();
      return;
    }
    byId('clear').textContent = 'Click again to delete all';
    confirming = setTimeout(reset, CONFIRM_TIME);
  });
}
