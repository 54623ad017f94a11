package main

import (
	"net/http"
	"os"

	"github.com/google/uuid"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("hello " + uuid.Nil.String())) })
	http.ListenAndServe(":"+os.Getenv("PORT"), nil)
}
