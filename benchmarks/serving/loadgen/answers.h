// HTTP/1.1 answers, read as their bytes come, cut anywhere; a part of loadgen.c.

static void read_events(Connection *c, const char *at, size_t length) {
  static const char word[] = "data:";
  const char *stop = at + length;
  while (at < stop) {
    while (c->line >= 0 && c->line < 5 && at < stop) {  // so many characters of `word` began this line
      if (*at != word[c->line]) {
        c->line = -1;
        break;
      }
      at++;
      c->line++;
    }
    if (c->line == 5) {
      double t = now();
      if (!c->has_event && in_window(c->due)) put(&c->of->first_event, t - c->due);
      c->has_event = 1;
      c->of->events += in_window(t);
      c->line = -1;
    }
    if (at >= stop || (at = memchr(at, '\n', (size_t)(stop - at))) == NULL) return;
    at++;
    c->line = 0;
  }
}

static const char *header(const char *head, const char *name) {
  char wanted[64];
  snprintf(wanted, sizeof wanted, "\r\n%s:", name);
  const char *found = strcasestr(head, wanted);
  return found == NULL ? NULL : found + strlen(wanted) + strspn(found + strlen(wanted), " \t");
}

static int read_head(Connection *c) {  // 1: the answer has no body
  c->head[c->head_length] = 0;
  if (strncmp(c->head, "HTTP/1.", 7) != 0) fail("answer", "it does not begin with HTTP/1.");
  c->status = atoi(c->head + 9);
  if (c->status < 100 || c->status > 999) fail("answer", "it has no status");
  const char *length = header(c->head, "content-length"), *coding = header(c->head, "transfer-encoding");
  const char *connection = header(c->head, "connection");
  c->is_last = connection != NULL && strncasecmp(connection, "close", 5) == 0;
  if (coding != NULL && strncasecmp(coding, "chunked", 7) == 0) {
    c->state = CHUNK_SIZE;
    c->left = c->head_length = 0;
  } else if (length != NULL) {
    c->state = LENGTH;
    c->left = strtoull(length, NULL, 10);
    return c->left == 0;
  } else if (c->status == 204 || c->status == 304) {
    return 1;
  } else {
    c->state = TO_THE_END;
  }
  return 0;
}

static void take(Connection *c, const char *at, size_t length) {
  while (length > 0 && c->is_busy) {
    size_t used = 1;
    switch (c->state) {
      case HEAD:
        if (c->head_length == 0) {  // nearly always the head is whole
          const char *stop = memmem(at, length, "\r\n\r\n", 4);
          used = stop != NULL ? (size_t)(stop - at) + 4 : 1;
        }
        if (c->head_length + used >= HEAD_BYTES) fail("answer", "its head is longer than 16 KiB");
        memcpy(c->head + c->head_length, at, used);
        c->head_length += used;
        if (c->head_length >= 4 && memcmp(c->head + c->head_length - 4, "\r\n\r\n", 4) == 0 && read_head(c))
          answered(c);
        break;
      case CHUNK_SIZE:
        if (*at == '\n') {
          c->state = c->left > 0 ? CHUNK : TRAILER;
          c->head_length = 0;
        } else if (c->head_length != HEAD_BYTES) {
          int lower = *at | 32;
          if (*at >= '0' && *at <= '9') c->left = c->left * 16 + (uint64_t)(*at - '0');
          else if (lower >= 'a' && lower <= 'f') c->left = c->left * 16 + (uint64_t)(lower - 'a' + 10);
          else c->head_length = HEAD_BYTES;  // an extension, or the line's end
        }
        break;
      case CHUNK_END:
        if (*at == '\n') {
          c->state = CHUNK_SIZE;
          c->left = c->head_length = 0;
        }
        break;
      case TRAILER:
        if (*at == '\n' && c->head_length == 0) answered(c);
        else if (*at == '\n') c->head_length = 0;
        else if (*at != '\r') c->head_length = 1;
        break;
      case LENGTH:
      case CHUNK:
        used = length < c->left ? length : (size_t)c->left;
        c->left -= used;
        if (c->of->is_stream) read_events(c, at, used);
        if (c->left == 0 && c->state == CHUNK) c->state = CHUNK_END;
        else if (c->left == 0) answered(c);
        break;
      default:
        used = length;
        if (c->of->is_stream) read_events(c, at, used);
    }
    at += used;
    length -= used;
  }
}
