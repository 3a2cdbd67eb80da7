// Files dropped or pasted anywhere go where the open tab takes files in; a browser would open a dropped one instead.
(() => {
  const places = ['#upload', '#settings-file', '#import'];
  const inside = place => place.querySelector('input[type=file]') || place.parentElement.querySelector('input[type=file]');
  const open = () => {
    const place = places.map(place => document.querySelector(place)).find(place => place?.offsetParent);
    return place && inside(place);
  };
  const hand = files => {
    const input = open();
    if (!input || !files.length) return false;
    const transfer = new DataTransfer();
    [...files].slice(0, input.multiple ? undefined : 1).forEach(file => transfer.items.add(file));
    input.files = transfer.files;
    input.dispatchEvent(new Event('change', {bubbles: true}));
    return true;
  };
  const carries = event => [...(event.dataTransfer?.types || [])].includes('Files');
  document.addEventListener('dragover', event => { if (carries(event)) event.preventDefault(); });
  document.addEventListener('drop', event => {
    if (!carries(event) || event.defaultPrevented) return;
    event.preventDefault();
    hand(event.dataTransfer.files);
  });
  document.addEventListener('paste', event => {
    if (event.clipboardData?.files.length && hand(event.clipboardData.files)) event.preventDefault();
  });
})();
