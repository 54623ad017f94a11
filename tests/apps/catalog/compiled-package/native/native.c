#include <libpq-fe.h>

int version(void) { return PQlibVersion(); }
