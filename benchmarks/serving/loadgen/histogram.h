// How long things took: counts by time, and percentiles of them as JSON.
#include <math.h>
#include <stdint.h>
#include <stdio.h>

enum { FINE = 256, BUCKETS = 48 * FINE };

typedef struct {  // of nanoseconds: 256 buckets for each power of two, so that none is wider than 0.4 %
  uint64_t counts[BUCKETS], total;
  double sum, most;
} Histogram;

static void put(Histogram *h, double seconds) {
  double ns = seconds * 1e9 < 1 ? 1 : seconds * 1e9;
  int exponent;
  double fraction = frexp(ns, &exponent);  // 0.5 <= fraction < 1
  int at = exponent * FINE + (int)((fraction - 0.5) * 2 * FINE);
  h->counts[at < BUCKETS ? at : BUCKETS - 1]++;
  h->total++;
  h->sum += seconds;
  if (seconds > h->most) h->most = seconds;
}

static double percentile_us(const Histogram *h, double share) {
  uint64_t wanted = (uint64_t)ceil(share * (double)h->total), seen = 0;
  for (int at = 0; at < BUCKETS; at++) {
    seen += h->counts[at];
    if (seen >= wanted && seen > 0) {
      double middle = ldexp(0.5 + (at % FINE + 0.5) / (2 * FINE), at / FINE) * 1e-3;
      return middle < h->most * 1e6 ? middle : h->most * 1e6;
    }
  }
  return 0;
}

static void tell_histogram(const char *name, const Histogram *h) {
  printf(",\"%s\":{\"count\":%llu", name, (unsigned long long)h->total);
  if (h->total > 0)
    printf(",\"mean\":%.2f,\"p50\":%.2f,\"p90\":%.2f,\"p95\":%.2f,\"p99\":%.2f,\"p999\":%.2f,\"max\":%.2f",
           h->sum / (double)h->total * 1e6, percentile_us(h, .5), percentile_us(h, .9), percentile_us(h, .95),
           percentile_us(h, .99), percentile_us(h, .999), h->most * 1e6);
  printf("}");
}
