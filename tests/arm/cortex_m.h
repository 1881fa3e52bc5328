/* What check_core.c asks of a Cortex-M board under QEMU. */
#ifndef CORTEX_M_H
#define CORTEX_M_H

#include <stdint.h>

/* Instructions executed since the call before; needs `-icount shift=6` (up to 10 million in between). */
uint32_t instructions_since(void);

/* Fills the unused stack with a pattern; stack_used then tells how many bytes below its caller were used since. */
void stack_paint(void);
uint32_t stack_used(void);

#endif
