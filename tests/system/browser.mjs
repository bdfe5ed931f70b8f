// Logs in to a relay as a browser does and sends one packet: browser.mjs URL CLIENT-INFO-FRAME PACKET-FRAME (hex).
// Prints the data of the first packet received (hex) and the code of its own close once the relay has agreed.
const [url, clientInfo, packet] = process.argv.slice(2);
const socket = new WebSocket(url, ["derp"]);
socket.binaryType = "arraybuffer";
let received = Buffer.alloc(0);

function onFrame(type, payload) {
  if (type === 1) socket.send(Buffer.from(clientInfo, "hex"));
  if (type === 3) socket.send(Buffer.from(packet, "hex"));
  if (type === 5) {
    console.log(payload.subarray(32).toString("hex"));
    socket.close(1000);
  }
}

socket.onmessage = ({ data }) => {
  received = Buffer.concat([received, Buffer.from(data)]);
  while (received.length >= 5 && received.length >= 5 + received.readUInt32BE(1)) {
    const end = 5 + received.readUInt32BE(1);
    const frame = received.subarray(0, end);
    received = received.subarray(end);
    onFrame(frame[0], frame.subarray(5));
  }
};
socket.onerror = ({ message }) => console.log("error", message);
socket.onclose = ({ code }) => console.log(code);
