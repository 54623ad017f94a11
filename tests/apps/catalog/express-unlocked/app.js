const express = require("express");
const app = express();

app.get("/", (request, response) => response.send("hello from express"));
app.listen(process.env.PORT, "0.0.0.0");
