// gallery.html: everything is in the file.
const data = JSON.parse($("data").textContent);
const source = {image: row => data.images[row]};
start(decodeTable(Uint8Array.from(atob(data.table), each => each.charCodeAt(0)).buffer));
