// A stand-in for NVIDIA's libcuda.so.1, for machines without a GPU: two devices, whose kernels are
// calls of a function that the test gives. It checks what a driver checks (the current context, the
// context of a kernel, the code), records every call, and fails where the test asks for it.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
};
enum { DEVICES = 2, CONTEXT_DEPTH = 8, PLANS = 16, LOG_BYTES = 1 << 16 };

typedef int Status;
typedef struct { int device; } Context;
typedef struct { Context *context; } Module;
typedef struct { Module *module; char name[64]; } Function;
// The kernel: its argument, the grid, the handle of the stream and the device.
typedef void (*Kernel)(const void *argument, unsigned x, unsigned y, void *stream, int device);

static struct { const char *function; Status status; int calls_before; } plans[PLANS];
static Status lost;  // after a sticky error every call returns it
static int initialized, depth;
static Context contexts[DEVICES] = {{0}, {1}}, *stack[CONTEXT_DEPTH];
static Kernel kernel;
static char calls[LOG_BYTES];

// ---- what the tests call

void standin_fail(const char *function, Status status, int calls_before) {
    for (int i = 0; i < PLANS; ++i)
        if (plans[i].function == NULL) {
            plans[i].function = strdup(function);
            plans[i].status = status;
            plans[i].calls_before = calls_before;
            return;
        }
    abort();
}

void standin_recover(void) { memset(plans, 0, sizeof plans); }
void standin_set_kernel(Kernel given) { kernel = given; }
const char *standin_calls(void) { return calls; }
int standin_context_depth(void) { return depth; }

// ---- bookkeeping

static Status enter(const char *function) {
    size_t used = strlen(calls);
    snprintf(calls + used, sizeof calls - used, "%s\n", function);
    if (lost) return lost;
    for (int i = 0; i < PLANS; ++i)
        if (plans[i].function && strcmp(plans[i].function, function) == 0) {
            if (plans[i].calls_before-- > 0) continue;
            // An illegal address and a launch failure are sticky, as in the real driver.
            if (plans[i].status == 700 || plans[i].status == 719) lost = plans[i].status;
            return plans[i].status;
        }
    if (!initialized && strcmp(function, "cuInit") != 0) return NOT_INITIALIZED;
    return SUCCESS;
}
#define ENTER() do { Status status_ = enter(__func__); if (status_ != SUCCESS) return status_; } while (0)

// ---- the driver

Status cuInit(unsigned flags) {
    ENTER();
    initialized = 1;
    return flags == 0 ? SUCCESS : INVALID_VALUE;
}

Status cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

Status cuDeviceGet(int *device, int ordinal) {
    ENTER();
    if (ordinal < 0 || ordinal >= DEVICES) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

Status cuDevicePrimaryCtxRetain(Context **context, int device) {
    ENTER();
    *context = &contexts[device];
    return SUCCESS;
}

Status cuCtxPushCurrent_v2(Context *context) {
    ENTER();
    if (context != &contexts[0] && context != &contexts[1]) return INVALID_CONTEXT;
    if (depth == CONTEXT_DEPTH) return INVALID_VALUE;
    stack[depth++] = context;
    return SUCCESS;
}

Status cuCtxPopCurrent_v2(Context **context) {
    if (depth == 0) return INVALID_CONTEXT;  // also after a sticky error, so that nothing leaks
    --depth;
    if (context != NULL) *context = stack[depth];
    return enter(__func__);
}

Status cuCtxSynchronize(void) {
    ENTER();
    return SUCCESS;
}

Status cuModuleLoadData(Module **module, const void *code) {
    ENTER();
    if (depth == 0) return INVALID_CONTEXT;
    if (memcmp(code, "\x7f" "ELF", 4) != 0 && strstr(code, ".target sm_") == NULL) return INVALID_IMAGE;
    *module = malloc(sizeof **module);
    (*module)->context = stack[depth - 1];
    return SUCCESS;
}

Status cuModuleGetFunction(Function **function, Module *module, const char *name) {
    ENTER();
    if (strncmp(name, "lite_detr_", 10) != 0 && strcmp(name, "original_msda") != 0) return NOT_FOUND;
    *function = malloc(sizeof **function);
    (*function)->module = module;
    snprintf((*function)->name, sizeof (*function)->name, "%s", name);
    return SUCCESS;
}

Status cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                      void *stream, void **parameters, void **extra) {
    ENTER();
    if (depth == 0) return INVALID_CONTEXT;
    Context *current = stack[depth - 1];
    if (function->module->context != current) return INVALID_HANDLE;
    if (grid_x == 0 || grid_y == 0 || grid_y > 65535 || grid_z != 1) return INVALID_VALUE;
    if (block_x == 0 || block_x > 1024 || block_y != 1 || block_z != 1) return INVALID_VALUE;
    if (shared_bytes > 48 << 10 || parameters == NULL || extra != NULL) return INVALID_VALUE;
    if (kernel != NULL) kernel(parameters[0], grid_x, grid_y, stream, current->device);
    return SUCCESS;
}

// How the bindings find the functions; a name in STANDIN_HIDDEN is one that this driver lacks.
Status cuGetProcAddress_v2(const char *symbol, void **address, int version, uint64_t flags, int *found) {
    static const struct { const char *name; void *address; } functions[] = {
        {"cuInit", cuInit},
        {"cuDriverGetVersion", cuDriverGetVersion},
        {"cuDeviceGet", cuDeviceGet},
        {"cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain},
        {"cuCtxPushCurrent", cuCtxPushCurrent_v2},
        {"cuCtxPopCurrent", cuCtxPopCurrent_v2},
        {"cuModuleLoadData", cuModuleLoadData},
        {"cuModuleGetFunction", cuModuleGetFunction},
        {"cuLaunchKernel", cuLaunchKernel},
        {"cuGetProcAddress", cuGetProcAddress_v2},
    };
    const char *hidden = getenv("STANDIN_HIDDEN");
    (void)version, (void)flags;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; ++i)
        if (strcmp(functions[i].name, symbol) == 0 && (hidden == NULL || strcmp(hidden, symbol) != 0)) {
            *address = functions[i].address;
            if (found != NULL) *found = 0;
            return SUCCESS;
        }
    *address = NULL;
    if (found != NULL) *found = 1;
    return NOT_FOUND;
}

Status cuGetProcAddress(const char *symbol, void **address, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, address, version, flags, NULL);
}
