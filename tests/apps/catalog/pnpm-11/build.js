require("is-odd");
require("fs").writeFileSync("built.txt", "built");
