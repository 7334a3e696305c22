// A plugin of the QEMU user-mode emulator: the misses of a first-level data cache and a
// second-level cache, 4-way and 8-way, 64-byte lines, least recently used. "l1=KB" and "l2=KB" give
// the sizes. It knows no prefetching and no code. The declarations are those of QEMU's plugin
// interface, version 1.
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };
typedef void (*translated)(qemu_plugin_id_t id, struct qemu_plugin_tb* tb);
typedef void (*at_exit)(qemu_plugin_id_t id, void* data);
typedef void (*accessed)(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t address,
                         void* data);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, translated fn);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn* insn, accessed fn,
                                      enum qemu_plugin_cb_flags flags, enum qemu_plugin_mem_rw rw,
                                      void* data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, at_exit fn, void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* tb);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb* tb, size_t index);
unsigned int qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t info);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum { kLine = 64 };

struct cache {
  uint64_t sets, ways, misses;
  uint64_t* lines;  // [set][way], the most recent first; line + 1, or 0
};

static struct cache first = {0, 4, 0, NULL}, second = {0, 8, 0, NULL};

static void set_size(struct cache* c, uint64_t kilobytes) {
  c->sets = kilobytes * 1024 / kLine / c->ways;
  c->lines = calloc(c->sets * c->ways, sizeof *c->lines);
  if (c->sets == 0 || c->lines == NULL) abort();
}

// Whether the line is there; it is afterwards.
static bool touch(struct cache* c, uint64_t line) {
  uint64_t* set = c->lines + line % c->sets * c->ways;
  uint64_t at = 0;
  while (at < c->ways && set[at] != line + 1) ++at;
  const bool found = at < c->ways;
  if (!found) at = c->ways - 1;
  memmove(set + 1, set, at * sizeof *set);
  set[0] = line + 1;
  c->misses += !found;
  return found;
}

static void on_access(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t address, void* data) {
  (void)vcpu, (void)data;
  const uint64_t last = address + (1u << qemu_plugin_mem_size_shift(info)) - 1;
  for (uint64_t line = address / kLine; line <= last / kLine; ++line) {
    if (!touch(&first, line)) touch(&second, line);
  }
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb* tb) {
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); ++i) {
    qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_access,
                                     QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, NULL);
  }
}

static void on_exit_of_guest(qemu_plugin_id_t id, void* data) {
  (void)id, (void)data;
  fprintf(stderr, "first %" PRIu64 "\nsecond %" PRIu64 "\n", first.misses, second.misses);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc,
                               char** argv) {
  (void)info;
  uint64_t l1 = 32, l2 = 512;
  for (int i = 0; i < argc; ++i) {
    if (strncmp(argv[i], "l1=", 3) == 0) l1 = strtoull(argv[i] + 3, NULL, 10);
    if (strncmp(argv[i], "l2=", 3) == 0) l2 = strtoull(argv[i] + 3, NULL, 10);
  }
  set_size(&first, l1);
  set_size(&second, l2);
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_atexit_cb(id, on_exit_of_guest, NULL);
  return 0;
}
