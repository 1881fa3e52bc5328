/* Start-up, instruction counter and stack meter of a Cortex-M4 or M55 under QEMU; output by semihosting (rdimon).
 *
 * QEMU's SysTick runs on virtual time, and `-icount shift=6` makes an instruction 64 ns of it: counting ticks counts
 * instructions. A loop of known length gives the ratio, whatever the board's clock.
 */
#include "cortex_m.h"

#include <stdlib.h>
#include <string.h>

#define CPACR (*(volatile uint32_t *)0xE000ED88u)
#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define SYST_MASK 0x00ffffffu
#define PAINT 0xa5a5a5a5u
#define SPARED_WORDS 16 /* of stack_paint itself; counted as used */
#define CALIBRATION_LOOPS 100000u /* of two instructions */

extern uint32_t data_load[], data_start[], data_end[], bss_start[], bss_end[], stack_bottom[], stack_top[];
extern void initialise_monitor_handles(void);
extern int main(void);

void reset_handler(void);
static void fault_handler(void);

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    stack_top, (const void *)reset_handler, (const void *)fault_handler, (const void *)fault_handler,
    (const void *)fault_handler, (const void *)fault_handler, (const void *)fault_handler, (const void *)fault_handler,
};

static uint32_t last_tick, ticks_per_loop_q16;
static uint32_t *painted_to;

static uint32_t ticks_since(void)
{
    const uint32_t now = SYST_CVR, ticks = (last_tick - now) & SYST_MASK; /* it counts down */
    last_tick = SYST_CVR;
    return ticks;
}

static void calibrate(void)
{
    uint32_t loops = CALIBRATION_LOOPS;

    SYST_RVR = SYST_MASK;
    SYST_CVR = 0;
    SYST_CSR = 5; /* the processor's clock, no interrupt */
    (void)ticks_since();
    __asm volatile("1: subs %0, %0, #1\n\tbne 1b" : "+r"(loops) : : "cc");
    ticks_per_loop_q16 = (uint32_t)(((uint64_t)ticks_since() << 16) / CALIBRATION_LOOPS);
}

uint32_t instructions_since(void)
{
    return (uint32_t)(((uint64_t)ticks_since() << 17) / ticks_per_loop_q16);
}

void stack_paint(void)
{
    uint32_t *word;
    painted_to = (uint32_t *)__builtin_frame_address(0) - SPARED_WORDS;
    for (word = stack_bottom; word < painted_to; word++)
        *word = PAINT;
}

uint32_t stack_used(void)
{
    const uint32_t *word = stack_bottom;
    while (word < painted_to && *word == PAINT)
        word++;
    return (uint32_t)((const uint8_t *)(painted_to + SPARED_WORDS) - (const uint8_t *)word);
}

/* newlib's exit asks for it; there are no destructors */
void _fini(void);
void _fini(void) {}

static void fault_handler(void)
{
    _Exit(1);
}

void reset_handler(void)
{
    CPACR |= 0xfu << 20; /* the FPU, and MVE where there is one */
    __asm volatile("dsb\n\tisb");
    memcpy(data_start, data_load, (size_t)((uint8_t *)data_end - (uint8_t *)data_start));
    memset(bss_start, 0, (size_t)((uint8_t *)bss_end - (uint8_t *)bss_start));
    initialise_monitor_handles();
    calibrate();
    exit(main());
}
