// A plugin of the QEMU user-mode emulator: counts the guest's instructions exactly, with
// "blocks=on" lists every translated block (address, instructions, executions) for a profile, and
// with "marks=on" prints the count at every call of clock_gettime, which a profile of a program
// makes after each node. The declarations are those of QEMU's plugin interface, version 1.
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
typedef struct qemu_info_t qemu_info_t;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*translated)(qemu_plugin_id_t id, struct qemu_plugin_tb* tb);
typedef void (*at_exit)(qemu_plugin_id_t id, void* data);
typedef void (*called)(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, translated fn);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* tb, enum qemu_plugin_op op,
                                              void* counter, uint64_t add);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, called fn);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, at_exit fn, void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb* tb);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

struct block {
  uint64_t address, length, executions;
  struct block* next;
};

static struct block* blocks;
static bool list_blocks;

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb* tb) {
  (void)id;
  struct block* b = calloc(1, sizeof *b);
  if (b == NULL) abort();
  b->address = qemu_plugin_tb_vaddr(tb);
  b->length = qemu_plugin_tb_n_insns(tb);
  b->next = __atomic_load_n(&blocks, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(&blocks, &b->next, b, false, __ATOMIC_RELEASE,
                                      __ATOMIC_RELAXED)) {
  }
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &b->executions, 1);
}

static uint64_t count(void) {
  uint64_t total = 0;
  for (const struct block* b = blocks; b != NULL; b = b->next) total += b->length * b->executions;
  return total;
}

static void on_syscall(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a,
                       uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                       uint64_t h) {
  (void)id, (void)vcpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  const int64_t clock_gettime = 113, getsid = 156;
  if (number == clock_gettime) fprintf(stderr, "mark %" PRIu64 "\n", count());
  if (number == getsid) fprintf(stderr, "call %" PRIu64 "\n", count());
}

static void on_exit_of_guest(qemu_plugin_id_t id, void* data) {
  (void)id, (void)data;
  for (const struct block* b = blocks; list_blocks && b != NULL; b = b->next) {
    fprintf(stderr, "block %" PRIx64 " %" PRIu64 " %" PRIu64 "\n", b->address, b->length,
            b->executions);
  }
  fprintf(stderr, "instructions %" PRIu64 "\n", count());
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc,
                               char** argv) {
  (void)info;
  for (int i = 0; i < argc; ++i) {
    list_blocks = list_blocks || strcmp(argv[i], "blocks=on") == 0;
    if (strcmp(argv[i], "marks=on") == 0) qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_atexit_cb(id, on_exit_of_guest, NULL);
  return 0;
}
