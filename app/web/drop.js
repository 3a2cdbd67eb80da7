// Files dropped or pasted anywhere go to the open tab's upload field; the browser would open a dropped file instead.
(() => {
  const fields = ['#upload', '#settings-file', '#import'];
  const inputOf = field => field.querySelector('input[type=file]') || field.parentElement.querySelector('input[type=file]');
  const visibleInput = () => {
    const field = fields.map(id => document.querySelector(id)).find(element => element?.offsetParent);
    return field && inputOf(field);
  };
  const upload = files => {
    const input = visibleInput();
    if (!input || !files.length) return false;
    const transfer = new DataTransfer();
    [...files].slice(0, input.multiple ? undefined : 1).forEach(file => transfer.items.add(file));
    input.files = transfer.files;
    input.dispatchEvent(new Event('change', {bubbles: true}));
    return true;
  };
  const hasFiles = event => [...(event.dataTransfer?.types || [])].includes('Files');
  document.addEventListener('dragover', event => { if (hasFiles(event)) event.preventDefault(); });
  document.addEventListener('drop', event => {
    if (!hasFiles(event) || event.defaultPrevented) return;
    event.preventDefault();
    upload(event.dataTransfer.files);
  });
  document.addEventListener('paste', event => {
    if (event.clipboardData?.files.length && upload(event.clipboardData.files)) event.preventDefault();
  });
})();
