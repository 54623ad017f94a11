const http = require("http");

http
  .createServer((request, response) => response.end("hello from behind a byte order mark"))
  .listen(process.env.PORT, "0.0.0.0");
