const http = require("http");

http
  .createServer((request, response) => response.end(require("fs").readFileSync("text.txt")))
  .listen(process.env.PORT, "0.0.0.0");
