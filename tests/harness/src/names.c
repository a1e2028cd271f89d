/*
 * Names for one process: takes the place of getaddrinfo where this library is preloaded.
 *
 * The file that the variable NAMES names has lines of two words, read anew for each look-up:
 *
 *   meta.example 127.0.0.2     this name has this address
 *   .dead.example mute         the name server of names that end so says nothing
 *
 * Any other name does not exist. A look-up at a mute server takes as long as glibc usually waits for one, or until the
 * file says otherwise.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MUTE_SECONDS 20
#define LOOKS_PER_SECOND 20
#define WORD 256

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

static int ends_with(const char *text, const char *end) {
  size_t text_len = strlen(text), end_len = strlen(end);
  return text_len >= end_len && strcmp(text + text_len - end_len, end) == 0;
}

/* Whether the file has a line for this name; then `value` is its second word. */
static int find(const char *name, char value[WORD]) {
  const char *path = getenv("NAMES");
  FILE *file = path ? fopen(path, "re") : NULL;
  char key[WORD];
  int found = 0;
  while (file && !found && fscanf(file, "%255s %255s", key, value) == 2)
    found = key[0] == '.' ? ends_with(name, key) : strcmp(name, key) == 0;
  if (file)
    fclose(file);
  return found;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  look_up *real = (look_up *)dlsym(RTLD_NEXT, "getaddrinfo");
  unsigned char address[sizeof(struct in6_addr)];
  if (!name || inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1)
    return real(name, service, hints, found);
  for (int look = 0; look < MUTE_SECONDS * LOOKS_PER_SECOND; look++) {
    char value[WORD];
    if (!find(name, value))
      return EAI_NONAME;
    if (strcmp(value, "mute") != 0)
      return real(value, service, hints, found);
    usleep(1000000 / LOOKS_PER_SECOND);
  }
  return EAI_AGAIN;
}
