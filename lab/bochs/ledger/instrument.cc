/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The ledger in Bochs: counts, and the lines of the file BX_LEDGER; the trace, lines of the file BX_TRACE. */

#include <map>
#include <string>
#include "bochs.h"
#include "cpu/cpu.h"
#include "memory/memory-bochs.h"

/* NOP [rax + displacement]; RAX: the batch's number at its begin, its operations at its end; where a window opens 0 for the CPU that
   executes it alone, 1 for all. */
static const Bit32s MARK_BEGIN = 0x1ed9e201;
static const Bit32s MARK_END = 0x1ed9e202;
static const Bit32s MARK_OPEN = 0x1ed9e203;
static const Bit32s MARK_CLOSE = 0x1ed9e204;

bool ledger_open = false;
static Bit64u batch;
static std::map<std::string, Bit64u> counts;
/* Of every instruction: the host's, those of them at CPL 3, the guest's. */
static Bit64u host, user, guest;

/* Whose instructions count: in a batch without windows everybody's, else nobody's outside of them. */
static const unsigned EVERYBODY = ~0u, NOBODY = ~0u - 1;
static unsigned counted = EVERYBODY;
static bool windows;

/* The batch's exits so far, and which of them are traced, if there is a file: two in a row, as an operation has one or two. */
static FILE *trace;
static unsigned exits;
static const unsigned TRACED_FIRST = 4, TRACED_LAST = 5;

/* What an instruction's key has behind the colon. */
enum Detail { PLAIN, BY_MSR, FIELD_READ, FIELD_WRITTEN, CR_READ, CR_WRITTEN, DR_READ, DR_WRITTEN, CLEAN_BITS };

struct Entry {
  const char *family;
  Detail detail;
};

static Entry entries[BX_IA_LAST];

/* Groups of the VMCB's clean bits (APM vol. 2, 15.15.3), bit 0 first. */
static const char *const GROUPS[] = {"intercepts", "iopm", "asid", "tpr", "np", "crx", "drx", "dt", "seg", "cr2", "lbr", "avic"};
static const unsigned VMCB_CLEAN = 0xc0;

static void rows(const char *family, Detail detail, std::initializer_list<unsigned> opcodes)
{
  for (unsigned opcode : opcodes) entries[opcode] = {family, detail};
}

void ledger_start(void)
{
  const char *path = getenv("BX_TRACE");
  if (path) trace = fopen(path, "w");
  rows("vmentry", PLAIN, {BX_IA_VMLAUNCH, BX_IA_VMRESUME});
  rows("vmentry", CLEAN_BITS, {BX_IA_VMRUN});
  rows("vmread", FIELD_READ, {BX_IA_VMREAD_EdGd, BX_IA_VMREAD_EqGq});
  rows("vmwrite", FIELD_WRITTEN, {BX_IA_VMWRITE_GdEd, BX_IA_VMWRITE_GqEq});
  rows("vmptrld", PLAIN, {BX_IA_VMPTRLD_Mq});
  rows("vmclear", PLAIN, {BX_IA_VMCLEAR_Mq});
  rows("vmload", PLAIN, {BX_IA_VMLOAD});
  rows("vmsave", PLAIN, {BX_IA_VMSAVE});
  rows("stgi", PLAIN, {BX_IA_STGI});
  rows("clgi", PLAIN, {BX_IA_CLGI});
  rows("invept", PLAIN, {BX_IA_INVEPT});
  rows("invvpid", PLAIN, {BX_IA_INVVPID});
  rows("invlpga", PLAIN, {BX_IA_INVLPGA});
  rows("invpcid", PLAIN, {BX_IA_INVPCID});
  rows("invlpg", PLAIN, {BX_IA_INVLPG});
  rows("rdmsr", BY_MSR, {BX_IA_RDMSR});
  rows("wrmsr", BY_MSR, {BX_IA_WRMSR, BX_IA_WRMSRNS});
  rows("xsetbv", PLAIN, {BX_IA_XSETBV});
  rows("xgetbv", PLAIN, {BX_IA_XGETBV});
#if BX_SUPPORT_PKEYS
  rows("wrpkru", PLAIN, {BX_IA_WRPKRU});
  rows("rdpkru", PLAIN, {BX_IA_RDPKRU});
#endif
  rows("mov_cr", CR_READ, {BX_IA_MOV_RqCR0, BX_IA_MOV_RqCR2, BX_IA_MOV_RqCR3, BX_IA_MOV_RqCR4});
  rows("mov_cr", CR_WRITTEN, {BX_IA_MOV_CR0Rq, BX_IA_MOV_CR2Rq, BX_IA_MOV_CR3Rq, BX_IA_MOV_CR4Rq});
  rows("mov_cr:clts", PLAIN, {BX_IA_CLTS});
  rows("mov_dr", DR_READ, {BX_IA_MOV_RqDq});
  rows("mov_dr", DR_WRITTEN, {BX_IA_MOV_DqRq});
  rows("lgdt", PLAIN, {BX_IA_LGDT_Ms});
  rows("lidt", PLAIN, {BX_IA_LIDT_Ms});
  rows("lldt", PLAIN, {BX_IA_LLDT_Ew});
  rows("sldt", PLAIN, {BX_IA_SLDT_Ew});
  rows("ltr", PLAIN, {BX_IA_LTR_Ew});
  rows("mov_sreg", PLAIN, {BX_IA_MOV_SwEw});
  rows("swapgs", PLAIN, {BX_IA_SWAPGS});
  rows("rdfsbase", PLAIN, {BX_IA_RDFSBASE_Ed, BX_IA_RDFSBASE_Eq, BX_IA_RDGSBASE_Ed, BX_IA_RDGSBASE_Eq});
  rows("wrfsbase", PLAIN, {BX_IA_WRFSBASE_Ed, BX_IA_WRFSBASE_Eq, BX_IA_WRGSBASE_Ed, BX_IA_WRGSBASE_Eq});
  rows("verw", PLAIN, {BX_IA_VERW_Ew});
  rows("lfence", PLAIN, {BX_IA_LFENCE});
  rows("mfence", PLAIN, {BX_IA_MFENCE});
  rows("sfence", PLAIN, {BX_IA_SFENCE});
  rows("cpuid", PLAIN, {BX_IA_CPUID});
  rows("serialize", PLAIN, {BX_IA_SERIALIZE});
  rows("wbinvd", PLAIN, {BX_IA_WBINVD});
  rows("iret", PLAIN, {BX_IA_IRET_Op32, BX_IA_IRET_Op64});
  rows("syscall", PLAIN, {BX_IA_SYSCALL});
  rows("sysret", PLAIN, {BX_IA_SYSRET});
  rows("fxsave", PLAIN, {BX_IA_FXSAVE});
  rows("fxrstor", PLAIN, {BX_IA_FXRSTOR});
  rows("xsave", PLAIN, {BX_IA_XSAVE, BX_IA_XSAVEC, BX_IA_XSAVEOPT, BX_IA_XSAVES});
  rows("xrstor", PLAIN, {BX_IA_XRSTOR, BX_IA_XRSTORS});
  rows("rdtsc", PLAIN, {BX_IA_RDTSC, BX_IA_RDTSCP});
  rows("pause", PLAIN, {BX_IA_PAUSE});
  rows("hlt", PLAIN, {BX_IA_HLT});
  rows("sti", PLAIN, {BX_IA_STI});
  rows("cli", PLAIN, {BX_IA_CLI});
  rows("popf", PLAIN, {BX_IA_POPF_Fd, BX_IA_POPF_Fq});
}

static bool in_guest(const BX_CPU_C *cpu)
{
  return cpu->in_vmx_guest || cpu->in_svm_guest;
}

static std::string number(Bit64u n)
{
  char text[24];
  snprintf(text, sizeof(text), ":0x%llx", (unsigned long long)n);
  return text;
}

/* Clean bits that are 0: the groups that VMRUN loads from memory. */
static void not_clean(BX_CPU_C *cpu)
{
  Bit32u clean = 0;
  BX_MEM(0)->readPhysicalPage(cpu, (cpu->get_reg64(BX_64BIT_REG_RAX) & ~Bit64u(0xfff)) + VMCB_CLEAN, 4, &clean);
  for (unsigned bit = 0; bit < sizeof(GROUPS) / sizeof(GROUPS[0]); bit++)
    if ((clean >> bit & 1) == 0) counts[std::string("not_clean:") + GROUPS[bit]]++;
}

static std::string detail_of(BX_CPU_C *cpu, const bxInstruction_c *i, Detail detail)
{
  switch (detail) {
  case BY_MSR:
    return number(Bit32u(cpu->get_reg64(BX_64BIT_REG_RCX)));
  case FIELD_READ:
    return number(Bit32u(cpu->get_reg64(i->src())));
  case FIELD_WRITTEN:
    return number(Bit32u(cpu->get_reg64(i->dst())));
  case CR_READ:
    return ":from_cr" + std::to_string(i->src());
  case CR_WRITTEN:
    return ":to_cr" + std::to_string(i->dst());
  case DR_READ:
    return ":from_dr" + std::to_string(i->src());
  case DR_WRITTEN:
    return ":to_dr" + std::to_string(i->dst());
  default:
    return "";
  }
}

static bool locked(const bxInstruction_c *i)
{
  if (i->modC0()) return false;
  switch (i->getIaOpcode()) {
  case BX_IA_XCHG_EbGb:
  case BX_IA_XCHG_EwGw:
  case BX_IA_XCHG_EdGd:
  case BX_IA_XCHG_EqGq:
    return true;
  case BX_IA_ERROR:
    return false;
  default:
    return i->getLock();
  }
}

/* A line of the trace: address, who (u: CPL 3, k: the kernel, i: with interrupts off), what is dear about it. */
static void traced(BX_CPU_C *cpu, const bxInstruction_c *i, bool by_user, const std::string &key)
{
  if (exits < TRACED_FIRST || exits > TRACED_LAST) return;
  const char who = by_user ? 'u' : cpu->get_IF() ? 'k' : 'i';
  fprintf(trace, "%llx %c%s%s\n", (unsigned long long)cpu->get_instruction_pointer(), who, key.empty() ? "" : " ", key.c_str());
}

static bool counts_for(unsigned id)
{
  return counted == EVERYBODY || counted == id;
}

static void clear(void)
{
  counts.clear();
  host = user = guest = 0;
}

static void write_line(Bit64u operations)
{
  const char *path = getenv("BX_LEDGER");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (file == NULL) return;
  fprintf(file, "{\"mark\":%llu,\"operations\":%llu,\"counts\":{", (unsigned long long)batch, (unsigned long long)operations);
  fprintf(file, "\"instructions\":%llu,\"user\":%llu,\"guest\":%llu", (unsigned long long)host, (unsigned long long)user,
          (unsigned long long)guest);
  for (const auto &[key, count] : counts) fprintf(file, ",\"%s\":%llu", key.c_str(), (unsigned long long)count);
  fprintf(file, "}}\n");
  fclose(file);
}

static void open_window(unsigned id, bool of_all)
{
  /* The first: what is before it was outside. */
  if (!windows) clear();
  windows = true;
  counted = of_all ? EVERYBODY : id;
}

/* True if it was one. */
static bool mark(BX_CPU_C *cpu, unsigned id, const bxInstruction_c *i)
{
  if (i->modC0()) return false;
  const Bit64u rax = cpu->get_reg64(BX_64BIT_REG_RAX);
  switch (i->displ32s()) {
  case MARK_BEGIN:
    clear();
    batch = rax;
    windows = false;
    counted = EVERYBODY;
    ledger_open = true;
    exits = 0;
    if (trace) fprintf(trace, "batch %llu\n", (unsigned long long)batch);
    return true;
  case MARK_END:
    if (ledger_open) write_line(rax);
    ledger_open = false;
    return true;
  case MARK_OPEN:
    open_window(id, rax != 0);
    return true;
  case MARK_CLOSE:
    counted = NOBODY;
    return true;
  default:
    return false;
  }
}

void ledger_instruction(unsigned id, bxInstruction_c *i)
{
  BX_CPU_C *cpu = BX_CPU(id);
  if (i->getIaOpcode() == BX_IA_NOP && mark(cpu, id, i)) return;
  if (!ledger_open || !counts_for(id)) return;
  if (in_guest(cpu)) {
    guest++;
    return;
  }
  host++;
  const bool by_user = cpu->sregs[BX_SEG_REG_CS].selector.rpl == 3;
  if (by_user) user++;
  const Entry &entry = entries[i->getIaOpcode()];
  std::string key;
  if (entry.family) counts[key = std::string(entry.family) + detail_of(cpu, i, entry.detail)]++;
  if (entry.detail == CLEAN_BITS) not_clean(cpu);
  if (locked(i)) counts[key = "locked"]++;
  if (trace == NULL) return;
  traced(cpu, i, by_user, key);
  if (entry.family && !strcmp(entry.family, "vmentry")) {
    exits++;
    fflush(trace);
  }
}

static bool counts_now(BX_CPU_C *cpu)
{
  return ledger_open && counts_for(cpu->which_cpu()) && !in_guest(cpu);
}

void ledger_event(unsigned id, const char *family, unsigned vector)
{
  if (counts_now(BX_CPU(id))) counts[family + number(vector)]++;
}

void ledger_apic(BX_CPU_C *cpu, unsigned reg, bool write)
{
  if (counts_now(cpu)) counts[(write ? "apic_write" : "apic_read") + number(reg)]++;
}

void ledger_ipi(BX_CPU_C *cpu)
{
  if (counts_now(cpu)) counts["ipi"]++;
}
