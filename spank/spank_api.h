/*
 * All that the plugin wants from the world, and nothing of Slurm's own types: spank_api.c answers with the
 * real SPANK API, test_lrms_vm.c with a fake. So the plugin's logic is tested without a Slurm.
 */
#ifndef LRMS_VM_SPANK_API_H
#define LRMS_VM_SPANK_API_H

#include <stddef.h>
#include <stdint.h>

struct spank_handle; /* Slurm's own, never looked into */

/* Where Slurm has loaded us (spank_context(3)). */
enum api_place {
	API_SUBMIT, /* sbatch, salloc */
	API_SRUN,
	API_STEPD,
	API_SLURMD,
	API_ELSEWHERE, /* beside a prolog or an epilog; unknown */
};

enum api_step {
	API_STEP_BATCH,  /* argv[0] is slurmd's spool copy of the job's script */
	API_STEP_TASKS,  /* srun's; also the shell of an interactive salloc */
	API_STEP_EXTERN, /* holds processes only, runs nothing */
};

typedef int api_option_callback(int value, const char *argument, int remote);

enum api_place api_place(void);

/* Tell Slurm of an option with an argument. 0, or -1. Only during slurm_spank_init. */
int api_option_register(struct spank_handle *spank, const char *name, const char *argument, const char *usage,
			int value, api_option_callback *callback);

/* Whether the step was given the option. The user can forge it: good for refusing, never for granting. */
int api_option_seen(struct spank_handle *spank, const char *name);

/* Put NAME where root's hooks see it as SPANK_NAME. 0, or -1. */
int api_job_control_set(struct spank_handle *spank, const char *name, const char *value);

/* A variable of the job's environment: 1 found, 0 not there. What does not fit is cut. */
int api_job_variable(struct spank_handle *spank, const char *name, char *value, size_t size);

/* 0, or -1 where Slurm does not say. */
int api_job_id(struct spank_handle *spank, uint32_t *job_id);
int api_step(struct spank_handle *spank, enum api_step *step);
int api_argv(struct spank_handle *spank, char ***argv); /* ends with NULL */
int api_environment(struct spank_handle *spank, char ***environment);

/* Have Slurm put words before the task's own: 0 done, -1 failed, 1 this Slurm cannot (before 23.11). */
int api_prepend(struct spank_handle *spank, int count, const char *words[]);

/* One line in Slurm's log, or on the stderr of the submitting command. */
void api_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What ends this process: execve(2), which returns only -1, and _exit(2). */
int api_become(const char *program, char *const argv[], char *const environment[]);
void api_end(int code);

#endif
