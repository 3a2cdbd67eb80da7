// An image with data-zoom opens large on a click; arrow keys show its neighbours in the same data-group.
(() => {
  let images = [], at = 0;
  const box = () => {
    let dialog = document.getElementById('zoom');
    if (dialog) return dialog;
    dialog = document.createElement('dialog');
    dialog.id = 'zoom';
    dialog.innerHTML = '<img alt=""><p><span></span><a download="picture.png">Save</a>' +
      '<button type="button" aria-label="Previous">←</button><button type="button" aria-label="Next">→</button>' +
      '<button type="button">Close</button></p>';
    const [back, next, close] = dialog.querySelectorAll('button');
    back.onclick = () => show(at - 1); next.onclick = () => show(at + 1); close.onclick = () => dialog.close();
    dialog.onclick = event => { if (event.target === dialog) dialog.close(); };
    document.body.append(dialog);
    return dialog;
  };
  const show = index => {
    const dialog = box();
    at = (index + images.length) % images.length;
    dialog.querySelector('img').src = images[at].src;
    dialog.querySelector('img').alt = images[at].alt;
    dialog.querySelector('span').textContent = images[at].alt;
    dialog.querySelector('a').href = images[at].src;
    if (!dialog.open) dialog.showModal();
  };
  const open = image => {
    const group = image.closest('[data-group]') || document;
    images = [...group.querySelectorAll('img[data-zoom]')];
    show(images.indexOf(image));
  };
  document.addEventListener('click', event => { if (event.target.matches?.('img[data-zoom]')) open(event.target); });
  document.addEventListener('keydown', event => {
    if (event.target.matches?.('img[data-zoom]') && (event.key === 'Enter' || event.key === ' ')) {
      event.preventDefault(); open(event.target);
    } else if (document.getElementById('zoom')?.open) {
      if (event.key === 'ArrowLeft') show(at - 1);
      if (event.key === 'ArrowRight') show(at + 1);
    }
  });
})();
