const { readFileSync } = require("fs");

require("http")
  .createServer((_request, response) => response.end(readFileSync("built.txt") + require("ms/package.json").version))
  .listen(process.env.PORT);
