// Load on an HTTP/1.1 server, by one thread and epoll; what it saw is one line of JSON.
//
//     loadgen HOST PORT WARM_S SECONDS DRAIN_S {FILE CONNECTIONS RATE MODE SEED}...
//
// Each group of five is a class of requests: FILE has the whole request, head and body; RATE 0 is a closed
// loop (each connection asks again as soon as it is answered), else an open one with that many requests per
// second at random times, whose latencies count from when they were due, also while no connection was free.
// MODE is http, or sse, which tells of events ("data:" lines) and of the first of each answer. What counts is
// what was due, or came, in the SECONDS after WARM_S; for DRAIN_S more, answers under way are waited for.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "histogram.h"

enum { HEAD_BYTES = 16384, READ_BYTES = 1 << 18, RETRY_US = 20000 };
enum state { DOWN, DIALING, IDLE, HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, TO_THE_END };

typedef struct Connection Connection;

typedef struct {
  const char *file;
  char *request;
  size_t length;
  int num_connections, is_stream;
  double rate, next_due;
  unsigned short seed[3];
  Connection *connections, **idle;
  int num_idle;
  double *waiting;  // a ring of due times
  size_t first, num_waiting, room;
  Histogram good, other, first_event;
  uint64_t statuses[1000], due, done, good_done, events, bytes, broken, reconnects, unfinished;
} Class;

struct Connection {
  Class *of;
  int fd;
  enum state state;
  int is_busy, is_last, status, line, has_event;
  double due, retry_at;
  size_t sent, head_length;
  uint64_t left;
  char head[HEAD_BYTES];
};

static int poller, timer, num_classes, num_down;
static Class *classes;
static struct sockaddr_in address;
static double begin, end, over;
static char buffer[READ_BYTES];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fail(const char *what, const char *why) {
  fprintf(stderr, "loadgen: %s: %s\n", what, why);
  exit(2);
}

static void *room_for(size_t count, size_t size) {
  void *found = calloc(count, size);
  if (found == NULL) fail("memory", strerror(errno));
  return found;
}

static int in_window(double t) { return t >= begin && t < end; }

// ---- connections

static void take_down(Connection *c, double t) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
  if (c->state != DOWN) num_down++;
  c->state = DOWN;
  c->retry_at = t;
}

static void dial(Connection *c, double t) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket", strerror(errno));
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event wanted = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
  if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
    close(fd);
    c->retry_at = t + RETRY_US * 1e-6;
    return;
  }
  if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted) < 0) fail("epoll_ctl", strerror(errno));
  num_down -= c->state == DOWN;
  c->fd = fd;
  c->state = DIALING;
}

static void lose(Connection *c, double t) {  // the connection ended, or can be used no more
  if (c->is_busy) {
    c->is_busy = 0;
    if (in_window(c->due)) c->of->broken++;
  } else if (c->state == IDLE) {
    for (int i = 0; i < c->of->num_idle; i++)
      if (c->of->idle[i] == c) c->of->idle[i] = c->of->idle[--c->of->num_idle];
  }
  c->of->reconnects++;
  take_down(c, t + (c->state == DIALING ? RETRY_US * 1e-6 : 0));
}

static void send_more(Connection *c) {
  Class *of = c->of;
  while (c->is_busy && c->sent < of->length) {
    ssize_t sent = send(c->fd, of->request + c->sent, of->length - c->sent, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) return;
    if (sent < 0) {
      if (errno != EPIPE && errno != ECONNRESET) fail("send", strerror(errno));
      return;  // what it answered before it closed is still to be read
    }
    c->sent += (size_t)sent;
  }
}

static void ask(Connection *c, double due) {
  c->is_busy = 1;
  c->due = due;
  c->sent = c->head_length = 0;
  c->has_event = c->is_last = 0;
  c->line = 0;
  c->state = HEAD;
  send_more(c);
}

static void be_idle(Connection *c, double t) {
  Class *of = c->of;
  c->state = IDLE;
  if (t >= end) {
    of->idle[of->num_idle++] = c;
  } else if (of->rate <= 0) {
    of->due += in_window(t);
    ask(c, t);
  } else if (of->num_waiting > 0) {
    double due = of->waiting[of->first];
    of->first = (of->first + 1) % of->room;
    of->num_waiting--;
    ask(c, due);
  } else {
    of->idle[of->num_idle++] = c;
  }
}

static void answered(Connection *c) {
  Class *of = c->of;
  double t = now();
  int is_good = c->status >= 200 && c->status < 300;
  c->is_busy = 0;
  if (in_window(t)) {
    of->done++;
    of->good_done += (uint64_t)is_good;
    of->statuses[c->status]++;
  }
  if (in_window(c->due)) put(is_good ? &of->good : &of->other, t - c->due);
  if (c->is_last || c->sent < of->length) {
    of->reconnects++;
    take_down(c, t);
  } else {
    be_idle(c, t);
  }
}

#include "answers.h"  // reads what came for a connection, and calls `answered`

static void read_all(Connection *c, uint32_t events, double t) {
  while (c->fd >= 0) {
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      if (c->is_busy && got == 0 && c->state == TO_THE_END) {
        c->is_last = 1;
        answered(c);
      } else {
        lose(c, t);
      }
      return;
    }
    if (in_window(t)) c->of->bytes += (uint64_t)got;
    take(c, buffer, (size_t)got);
    // All that was there, and a later end of the connection will be told of anew.
    if ((size_t)got < sizeof buffer && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))) return;
  }
}

static void handle(Connection *c, uint32_t events, double t) {
  if (c->fd < 0) return;
  if (c->state == DIALING) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) lose(c, t);
    else if (events & EPOLLOUT) be_idle(c, t);
    return;
  }
  if (events & EPOLLOUT) send_more(c);
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) read_all(c, events, t);
}

// ---- time

static void fall_due(Class *of, double t) {
  while (of->rate > 0 && of->next_due <= t && of->next_due < end) {
    of->due += in_window(of->next_due);
    if (of->num_waiting == of->room) fail("open loop", "too many requests wait for a connection");
    of->waiting[(of->first + of->num_waiting++) % of->room] = of->next_due;
    of->next_due += -log(1 - erand48(of->seed)) / of->rate;
  }
  while (of->num_waiting > 0 && of->num_idle > 0 && t < end) be_idle(of->idle[--of->num_idle], t);
}

static int set_timer(double t) {  // the time of the next thing to do, also as milliseconds for epoll_wait
  double next = t < end ? end : over;
  for (int i = 0; i < num_classes; i++)
    if (classes[i].rate > 0 && classes[i].next_due < next && t < end) next = classes[i].next_due;
  if (num_down > 0 && t + RETRY_US * 1e-6 < next) next = t + RETRY_US * 1e-6;
  struct itimerspec when = {.it_value = {(time_t)next, (long)((next - floor(next)) * 1e9)}};
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
  return next > t ? -1 : 0;
}

static int is_anything_under_way(void) {
  for (int i = 0; i < num_classes; i++)
    for (int k = 0; k < classes[i].num_connections; k++)
      if (classes[i].connections[k].is_busy) return 1;
  return 0;
}

static void run(void) {
  struct epoll_event found[256];
  double t = now(), armed = 0;
  while (t < end || (t < over && is_anything_under_way())) {
    for (int i = 0; i < num_classes; i++) {
      fall_due(classes + i, t);
      for (int k = 0; num_down > 0 && t < end && k < classes[i].num_connections; k++) {
        Connection *c = classes[i].connections + k;
        if (c->state == DOWN && c->retry_at <= t) dial(c, t);
      }
    }
    int is_open = 0, wait_ms = -1;
    for (int i = 0; i < num_classes; i++) is_open |= classes[i].rate > 0;
    if (is_open || num_down > 0 || t - armed > 1 || t >= end) wait_ms = set_timer(t), armed = t;
    int count = epoll_wait(poller, found, 256, wait_ms);
    t = now();
    for (int i = 0; i < count; i++) {
      if (found[i].data.ptr != NULL) handle(found[i].data.ptr, found[i].events, t);
      else if (read(timer, buffer, 8) < 0 && errno != EAGAIN) fail("timer", strerror(errno));
    }
  }
  for (int i = 0; i < num_classes; i++) {
    fall_due(classes + i, end);  // what fell due while this process did not run, unsent
    for (int k = 0; k < classes[i].num_connections; k++) {
      Connection *c = classes[i].connections + k;
      classes[i].unfinished += c->is_busy && in_window(c->due);
    }
  }
}

// ---- what is told

static void machine(double *stolen, double *all) {
  double part[8] = {0};
  FILE *file = fopen("/proc/stat", "r");
  *stolen = *all = 0;
  if (file == NULL) return;
  if (fscanf(file, "cpu") == 0)
    for (int i = 0; i < 8 && fscanf(file, "%lf", part + i) == 1; i++) *all += part[i];
  *stolen = part[7];
  fclose(file);
}

static void tell(const Class *of) {
  const struct {
    const char *name;
    uint64_t value;
  } counts[] = {
      {"due", of->due},           {"done", of->done},           {"ok", of->good_done},
      {"broken", of->broken},     {"reconnects", of->reconnects}, {"unfinished", of->unfinished},
      {"unsent", of->num_waiting}, {"events", of->events},       {"bytes", of->bytes},
  };
  const char *separator = "";
  printf("{");
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
    printf("\"%s\":%llu,", counts[i].name, (unsigned long long)counts[i].value);
  printf("\"statuses\":{");
  for (int status = 0; status < 1000; status++)
    if (of->statuses[status] > 0) {
      printf("%s\"%d\":%llu", separator, status, (unsigned long long)of->statuses[status]);
      separator = ",";
    }
  printf("}");
  tell_histogram("latency_us", &of->good);
  tell_histogram("refused_us", &of->other);
  tell_histogram("first_us", &of->first_event);
  printf("}");
}

static void open_class(Class *of, char **words, int number) {
  FILE *file = fopen(words[0], "rb");
  if (file == NULL) fail(words[0], strerror(errno));
  fseek(file, 0, SEEK_END);
  of->length = (size_t)ftell(file);
  rewind(file);
  of->request = room_for(of->length + 1, 1);
  if (fread(of->request, 1, of->length, file) != of->length) fail(words[0], "cannot be read");
  fclose(file);
  of->num_connections = atoi(words[1]);
  of->rate = atof(words[2]);
  of->is_stream = strcmp(words[3], "sse") == 0;
  of->seed[0] = (unsigned short)(atoi(words[4]) + 1);
  of->seed[1] = (unsigned short)number;
  of->room = 1 << 20;
  of->waiting = room_for(of->rate > 0 ? of->room : 1, sizeof *of->waiting);
  of->connections = room_for((size_t)of->num_connections, sizeof *of->connections);
  of->idle = room_for((size_t)of->num_connections, sizeof *of->idle);
  for (int k = 0; k < of->num_connections; k++) {
    Connection *c = of->connections + k;
    c->of = of;
    c->fd = -1;
    num_down++;
    dial(c, now());
  }
}

int main(int count, char **words) {
  if (count < 11 || (count - 6) % 5 != 0)
    fail("arguments", "HOST PORT WARM_S SECONDS DRAIN_S {FILE CONNECTIONS RATE MODE SEED}...");
  address.sin_family = AF_INET;
  address.sin_port = htons((uint16_t)atoi(words[2]));
  if (inet_pton(AF_INET, words[1], &address.sin_addr) != 1) fail(words[1], "is no IPv4 address");
  poller = epoll_create1(EPOLL_CLOEXEC);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = NULL};
  if (poller < 0 || timer < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, timer, &wanted) < 0)
    fail("epoll", strerror(errno));
  num_classes = (count - 6) / 5;
  classes = room_for((size_t)num_classes, sizeof *classes);
  for (int i = 0; i < num_classes; i++) open_class(classes + i, words + 6 + 5 * i, i);
  double began = now(), warm_s = atof(words[3]), seconds = atof(words[4]);
  begin = began + warm_s, end = begin + seconds, over = end + atof(words[5]);
  for (int i = 0; i < num_classes; i++) classes[i].next_due = began;
  double stolen[2], all[2];
  machine(stolen, all);
  run();
  machine(stolen + 1, all + 1);
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
  printf("{\"seconds\":%.6f,\"cpu\":%.4f,\"stolen\":%.4f,\"classes\":[", seconds, cpu_s / (now() - began),
         all[1] > all[0] ? (stolen[1] - stolen[0]) / (all[1] - all[0]) : 0);
  for (int i = 0; i < num_classes; i++) {
    if (i > 0) printf(",");
    tell(classes + i);
  }
  printf("]}\n");
  return 0;
}
