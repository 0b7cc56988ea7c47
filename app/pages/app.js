// Keys of the review: each one clicks the button that does the same.
const KEYS = { j: 'next', ArrowRight: 'next', k: 'previous', ArrowLeft: 'previous', a: 'accept', s: 'skip', u: 'undo' };
const byId = (id) => document.getElementById(id);
const control = (id) => byId(id)?.matches('button') ? byId(id) : byId(id)?.querySelector('button, input, textarea');
const isText = (target) => target.closest?.('textarea, select, [contenteditable], input:not([type=radio], [type=range], [type=checkbox])');
const usesArrows = (target) => target.closest?.('input, [role=tab], [role=slider], [role=listbox], [role=option]');

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === 'Escape' && isText(event.target)) return event.target.blur();
  if (isText(event.target) || byId('help')?.open || !byId('actions')?.offsetParent) return;
  if (event.key.startsWith('Arrow') && usesArrows(event.target)) return;
  const reason = document.querySelector(`[data-reason="${CSS.escape(event.key)}"]`);
  if (event.key === '?') byId('help').showModal();
  else if (event.key === '/') control('search').focus();
  else if (event.key === 'r') control('reason').focus();
  else if (event.repeat) return;
  else if (reason) reason.click();
  else if (KEYS[event.key]) control(KEYS[event.key])?.click();
  else return;
  event.preventDefault();
});

// One event at a time: of two answers that come at once, Gradio could show the older one last. An answer that does not come holds nothing up for good.
const fetchNow = window.fetch;
const patience = () => new Promise((done) => setTimeout(done, 10000));
let before = Promise.resolve();
window.fetch = (resource, ...options) => {
  if (!String(resource.url ?? resource).includes('/run/predict')) return fetchNow(resource, ...options);
  const answer = before.then(() => fetchNow(resource, ...options)).then(async (whole) => new Response(await whole.blob(), whole));
  before = Promise.race([answer, patience()]).catch(() => {});
  return answer;
};
