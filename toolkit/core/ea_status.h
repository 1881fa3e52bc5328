/* What every fallible function of the core returns. */
#ifndef EA_STATUS_H
#define EA_STATUS_H

typedef enum {
    EA_OK = 0,
    EA_BAD_TABLES = 1,   /* the tables are not ones that this version can run */
    EA_BAD_ARGUMENT = 2, /* a null pointer, a negative size, or memory that is not aligned to 8 bytes */
    EA_NO_SPACE = 3      /* the caller's memory is too small; nothing was consumed */
} ea_status;

#endif
